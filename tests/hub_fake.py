"""A fake of a model hub, and of any web server: the few requests that its client makes, answered from a folder."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubFake:
    """Serves ``folder`` as the repository ``someone/model``, and as plain files below /files/.

    ``seen`` lists what was asked for. With a ``token``, a request without it is refused, as by a
    model that asks for consent.
    """

    def __init__(self, folder: Path, token: str = "") -> None:
        self.seen: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def do_GET(self) -> None:
                path = urlsplit(self.path).path  # of a proxy, the path is a whole URL
                fake.seen.append(f"{self.command} {self.path.partition('?')[0]}")
                if token and self.headers.get("Authorization") != f"Bearer {token}":
                    return self.answer(b"{}", 401, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted.")
                if path.startswith("/api/models/someone/model"):
                    files = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]
                    siblings = [{"rfilename": name} for name in files]
                    info = {"id": "someone/model", "sha": COMMIT, "siblings": siblings}
                    return self.answer(json.dumps(info).encode(), Content_Type="application/json")
                for prefix in (f"/someone/model/resolve/{COMMIT}/", "/someone/model/resolve/v1/", "/files/"):
                    file = folder / path.removeprefix(prefix)
                    if path.startswith(prefix) and file.is_file():
                        body = file.read_bytes()
                        etag = f'"{hashlib.sha256(body).hexdigest()}"'
                        return self.answer(body, ETag=etag, X_Repo_Commit=COMMIT)
                return self.answer(b"{}", 404, X_Error_Code="EntryNotFound")

            do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubFake":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
