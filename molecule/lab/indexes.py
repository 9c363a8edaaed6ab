"""Package indexes: those in the pip configuration of this machine, merged into one index (PEP 503, 691)."""

import hashlib
import html
import html.parser
import json
import re
import ssl
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from system import LabError, run

ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Link:
    """A file that an index offers."""

    url: str
    python: str = ""  # versions that it supports
    yanked: bool = False

    @property
    def name(self) -> str:
        """File name, without the checksum that follows the URL."""
        return urllib.parse.unquote(urllib.parse.urlsplit(self.url).path.rsplit("/", 1)[-1])


def normalised(name: str) -> str:
    """Project name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def project(filename: str) -> str:
    """Project that a wheel or source archive belongs to."""
    return normalised(filename.split("-")[0] if filename.endswith(".whl") else filename.rsplit("-", 1)[0])


class Anchors(html.parser.HTMLParser):
    """The links of a page."""

    def __init__(self, base: str, page: str) -> None:
        super().__init__()
        self.base = base
        self.links: list[Link] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect anchors that have a target."""
        values = dict(attrs)
        if tag == "a" and (target := values.get("href")):
            url = urllib.parse.urljoin(self.base, target)
            self.links.append(Link(url, values.get("data-requires-python") or "", "data-yanked" in values))


def default_index() -> str:
    """The index that pip uses by default; only its help text names it."""
    found = re.search(r"\(default\s+(https://\S+?)\)", run(sys.executable, "-m", "pip", "install", "--help"))
    if found is None:
        raise LabError("pip does not tell its default index; set one: pip config set global.index-url URL")
    return found[1]


@dataclass
class Indexes:
    """All indexes merged. Each page is requested once, so a lab sees the same versions all the time."""

    indexes: list[str]
    folders: list[str]
    tls: ssl.SSLContext
    origins: dict[str, str] = field(default_factory=dict)  # URL of each key in our links
    _pages: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of_pip(cls) -> "Indexes":
        """Read the pip configuration; the environment overrides files, as in pip."""
        settings: dict[str, str] = {}
        for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
            key, _, value = line.partition("=")
            section, _, name = key.rpartition(".")
            if section == ":env:" or (section in ("global", "install") and name not in settings):
                settings[name] = value.strip("'\"").replace("\\n", " ")
        return cls(
            indexes=[settings.get("index-url") or default_index(), *settings.get("extra-index-url", "").split()],
            folders=settings.get("find-links", "").split(),
            tls=ssl.create_default_context(cafile=settings.get("cert")),
        )

    def open(self, url: str) -> BinaryIO:
        """Request a URL, without a cache."""
        request = urllib.request.Request(url, headers={"Accept": ACCEPT})
        response: BinaryIO = urllib.request.urlopen(request, timeout=TIMEOUT, context=self.tls)
        return response

    def page(self, name: str) -> str:
        """HTML page of a project, with links to this mirror. Raises KeyError if no index has it."""
        name = normalised(name)
        with self._lock:
            if name not in self._pages:
                files = {link.name: link for link in reversed([*self._local(name), *self._indexed(name)])}
                if not files:
                    raise KeyError(name)
                self._pages[name] = "<!DOCTYPE html>\n" + "".join(self._anchor(link) for link in files.values())
            return self._pages[name]

    def _anchor(self, link: Link) -> str:
        url, _, checksum = link.url.partition("#")
        key = hashlib.sha256(url.encode()).hexdigest()[:16]
        self.origins[key] = url
        target = f"/pypi/files/{key}/{urllib.parse.quote(link.name)}" + (f"#{checksum}" if checksum else "")
        python = f' data-requires-python="{html.escape(link.python)}"' if link.python else ""
        return f'<a href="{target}"{python}{" data-yanked" if link.yanked else ""}>{html.escape(link.name)}</a><br>\n'

    def _local(self, name: str) -> Iterator[Link]:
        """Files of the project in pip's folders."""
        for folder in self.folders:
            for path in sorted(Path(folder.removeprefix("file://")).expanduser().glob("*")):
                if path.suffix in (".whl", ".gz", ".zip") and project(path.name) == name:
                    yield Link(path.absolute().as_uri())

    def _indexed(self, name: str) -> Iterator[Link]:
        """Files of the project in pip's indexes."""
        for index in self.indexes:
            base = f"{index.rstrip('/')}/{name}/"
            if base.startswith("file:"):
                page = Path(urllib.request.url2pathname(urllib.parse.urlsplit(base).path)) / "index.html"
                if page.exists():
                    yield from Anchors(base, page.read_text()).links
                continue
            try:
                with self.open(base) as response:
                    text = response.read().decode()
            except urllib.error.HTTPError as error:
                if error.code != 404:
                    raise
                continue
            yield from _files(base, text) if text.lstrip().startswith("{") else Anchors(base, text).links


def _files(base: str, text: str) -> Iterator[Link]:
    """The links of a page in JSON."""
    for file in json.loads(text)["files"]:
        checksum = file["hashes"].get("sha256")
        url = urllib.parse.urljoin(base, file["url"]) + (f"#sha256={checksum}" if checksum else "")
        yield Link(url, file.get("requires-python") or "", bool(file.get("yanked")))
