"""A small Hugging Face Hub on this machine: the routes that reading and pushing models use."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_test"


class HubServer(ThreadingHTTPServer):
    """The server.

    Attributes:
        files: Content by repository and path.
        requests: Methods and paths of all requests.
        gated: Repositories that nobody may read.
        last_commit: Header of the last commit that was pushed.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.gated: set[str] = set()
        self.last_commit: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[HubServer]:
    """Serve within the block."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        body = self._body()
        path = self._path()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._error(401, "")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            self.server.files.setdefault(repo, {})
            return self._json({"url": f"{self.server.url}/{repo}", "id": repo, "name": repo})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        _, _, _, owner, name, action, *_ = path.split("/")
        repo = f"{owner}/{name}"
        if repo not in self.server.files:
            return self._error(404, "RepoNotFound")
        if action == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        assert action == "commit", path
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "header":
                self.server.last_commit = entry["value"]
            elif entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.server.files[repo][entry["value"]["path"]] = content
        return self._json(
            {"commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
        )

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        return path

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, *, with_body: bool) -> None:
        path = self._path()
        if path == "/":
            return self._send(b"", with_body)
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            repo = "/".join(parts[2:4])
            files = self._files(repo)
            if files is None:
                return None
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": COMMIT}
                for name, content in files.items()
            ]
            return self._json(tree)
        repo, (word, revision, *rest) = "/".join(parts[:2]), parts[2:]
        assert word == "resolve", path
        files = self._files(repo)
        if files is None:
            return None
        if revision not in ("main", "v1", COMMIT):
            return self._error(404, "RevisionNotFound")
        content = files.get("/".join(rest))
        if content is None:
            return self._error(404, "EntryNotFound")
        return self._send(content, with_body)

    def _files(self, repo: str) -> dict[str, bytes] | None:
        if repo in self.server.gated:
            self._error(403, "GatedRepo")
            return None
        files = self.server.files.get(repo)
        if files is None:
            self._error(404, "RepoNotFound")
        return files

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), True, "application/json")

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(
        self, content: bytes, with_body: bool, kind: str = "application/octet-stream"
    ) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(content)
