"""A hub of one machine: serves folders as the Hugging Face hub does, counts what it is asked."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """Serves `folders`: (models or datasets, id) -> folder."""

    def __init__(self, folders: dict[tuple[str, str], Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folders = folders
        self.asked: list[str] = []  # "GET /api/models/..."

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET(body)

    def do_GET(self, body: bytes = b"") -> None:
        address = urlsplit(self.path)
        path, asked = unquote(address.path).strip("/"), parse_qs(address.query)
        self.server.asked.append(f"{self.command} /{path}")
        is_deep = asked.get("recursive", ["False"])[0].lower() in ("true", "1")
        for (kind, name), folder in self.server.folders.items():
            api = f"api/{kind}/{name}"
            files = f"{'' if kind == 'models' else 'datasets/'}{name}/resolve/"
            if path == api or path.startswith(f"{api}/"):
                rest = path[len(api) :].strip("/")
                return self.send_json(told_of(rest, name, folder, is_deep, body))
            if path.startswith(files):
                return self.send_file(folder / path[len(files) :].partition("/")[2])
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def send_json(self, value: Any) -> None:
        if value is None:
            self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_file(self, path: Path) -> None:
        if path.is_file():
            told = {"ETag": f'"{digest(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            self.send(200, path.read_bytes(), told)
        else:
            self.send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    def send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def told_of(rest: str, name: str, folder: Path, is_deep: bool, body: bytes) -> Any:
    """Return what the API says: of a repository, of its tree, of some of its paths."""
    what, _, below = rest.partition("/")
    if what == "tree":
        root = folder / below.partition("/")[2]
        found = sorted(root.rglob("*") if is_deep else root.glob("*")) if root.is_dir() else None
        return None if found is None else [entry(path, folder) for path in found]
    if what == "paths-info":
        asked = json.loads(body)["paths"]
        return [entry(folder / path, folder) for path in asked if (folder / path).exists()]
    if rest in ("", "revision/main", f"revision/{COMMIT}"):
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        siblings = [{"rfilename": str(path.relative_to(folder))} for path in files]
        return {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
    return None


def entry(path: Path, folder: Path) -> dict[str, Any]:
    """Return what the API says of a file or a folder."""
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": COMMIT}
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": digest(path)}


def digest(path: Path) -> str:
    """Return git's name of a file."""
    body = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@contextmanager
def served(folders: dict[tuple[str, str], Path]) -> Iterator[Hub]:
    """Serve folders while `with` lasts."""
    hub = Hub(folders)
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
