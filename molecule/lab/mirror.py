#!/usr/bin/env python3
"""Serve the package sources of this machine to hosts without internet access; downloads are cached in a folder.

    /apt/0/...           the first package source in the apt configuration of this machine, and so on
    /pypi/simple/torch/  the indexes and folders in the pip configuration of this machine, as one index

Usage: mirror.py ADDRESS PORT FOLDER
"""

import collections
import contextlib
import hashlib
import shutil
import sys
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import images
from indexes import Indexes


class Downloads:
    """A folder of files that never change, each downloaded once, also for concurrent requests."""

    def __init__(self, folder: Path, indexes: Indexes) -> None:
        self._folder = folder
        self._indexes = indexes
        self._locks: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, url: str) -> Path:
        """Path of a local file, or of the cached copy of a remote one, which gets its name when it is complete."""
        if url.startswith("file:"):
            return Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
        name = url.rsplit("/", 1)[-1][-100:]
        target = self._folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
        with self._locks[target.name]:
            if not target.exists():
                with self._indexes.open(url) as source, tempfile.NamedTemporaryFile(dir=self._folder) as file:
                    shutil.copyfileobj(source, file)  # raises when the connection is lost
                    file.flush()
                    with contextlib.suppress(FileExistsError):  # another mirror was faster
                        target.hardlink_to(file.name)
        return target


class Mirror(ThreadingHTTPServer):
    """The server, and the state that its handlers share."""

    daemon_threads = True

    def __init__(self, address: str, port: int, folder: Path) -> None:
        super().__init__((address, port), Handler)  # listens already while apt and pip are asked
        self.apt = [uri for uri, _, _ in images.apt_sources()]
        self.indexes = Indexes.of_pip()
        self.downloads = Downloads(folder, self.indexes)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Mirror
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Dispatch on the path."""
        try:
            match urllib.parse.unquote(self.path).strip("/").split("/"):
                case ["apt", number, *path] if number.isdigit() and int(number) < len(self.server.apt):
                    self.apt(f"{self.server.apt[int(number)]}/{urllib.parse.quote('/'.join(path))}")
                case ["pypi", "simple", name]:
                    self.reply(self.server.indexes.page(name).encode(), "text/html; charset=utf-8")
                case ["pypi", "files", key, _]:
                    self.file(self.server.indexes.origins[key])
                case _:
                    self.send_error(HTTPStatus.NOT_FOUND)
        except urllib.error.HTTPError as error:
            self.send_error(error.code)
        except KeyError:
            self.send_error(HTTPStatus.NOT_FOUND)
        except urllib.error.URLError as error:
            self.send_error(HTTPStatus.BAD_GATEWAY, explain=str(error))

    def apt(self, url: str) -> None:
        """Cache packages and lists named by their hash, which never change; pass the few small other files through."""
        if "/pool/" in url or "/by-hash/" in url:
            self.file(url)
        else:
            with self.server.indexes.open(url) as source:
                self.reply(source.read())

    def reply(self, body: bytes, kind: str = "application/octet-stream") -> None:
        """Send a small body."""
        self.head(len(body), kind)
        self.wfile.write(body)

    def file(self, url: str) -> None:
        """Send a file that never changes."""
        with self.server.downloads.get(url).open("rb") as file:
            self.head(Path(file.name).stat().st_size, "application/octet-stream")
            shutil.copyfileobj(file, self.wfile)

    def head(self, size: int, kind: str) -> None:
        """Send the status line and headers."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.end_headers()


def main() -> None:
    """Serve until killed."""
    address, port, folder = sys.argv[1:]
    Mirror(address, int(port), Path(folder)).serve_forever()


if __name__ == "__main__":
    main()
