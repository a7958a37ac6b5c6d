"""A small Hugging Face Hub on this machine: the HTTP interface that `huggingface_hub` uses to share models.

It has repositories with branches and commits, large files (LFS, in one part), tokens and private repositories; and it
can fail on request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_secret"
CUT = 0
"""As the status of a failure: the connection is closed in the middle of the answer."""
LARGE = 2000
"""Files of at least this many bytes are large files."""

Files = dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: Files, message: str) -> str:
        state = repr((sorted(files.items()), len(self.messages))).encode()
        number = hashlib.sha1(state).hexdigest()
        self.commits[number], self.branches[branch] = files, number
        self.messages.append(message)
        return number

    def at(self, revision: str) -> tuple[str, Files]:
        number = self.branches.get(revision, revision)
        return number, self.commits[number]


@dataclass
class FakeHub:
    """The state of the Hub.

    Attributes:
        repos: Repositories by name.
        large: Content of uploaded large files, by SHA-256.
        requests: Method and path of every request.
        failure: Gives the status with which a request fails (`CUT`: no answer); None = it does not.
        damaged: File that arrives with other bytes than it has here.
        address: Where it listens.
    """

    repos: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    failure: Callable[[str, str], int | None] = lambda method, path: None
    damaged: str = ""
    address: str = ""

    def count(self, method: str, part: str) -> int:
        """Requests with this method whose path contains `part`."""
        return sum(each == method and part in path for each, path in self.requests)


class _Refused(Exception):
    def __init__(self, status: int, code: str = "") -> None:
        super().__init__(status)
        self.status, self.code = status, code


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
    if len(content) >= LARGE:
        entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 100}
    return entry


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        failure = self.hub.failure(self.command, path)
        try:
            if failure:
                raise _Refused(failure)
            self._routed(path, body, cut=failure == CUT and failure is not None)
        except _Refused as refused:
            self._send(refused.status, b'{"error": "refused"}', {"X-Error-Code": refused.code} if refused.code else {})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _repo(self, name: str) -> Repository:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._is_known):
            raise _Refused(404, "RepoNotFound")
        return repo

    @property
    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _routed(self, path: str, body: bytes, *, cut: bool) -> None:
        if self.command in ("POST", "PUT") and not path.startswith("/large/") and not self._is_known:
            raise _Refused(401)
        for pattern, method in _ROUTES.items():
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                return method(self, body, *match.groups(), **({"cut": cut} if method is _Handler._resolve else {}))
        raise _Refused(404)

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.address}/{name}"}
        if name in self.hub.repos:
            return self._send(409, json.dumps(url).encode())
        repo = self.hub.repos[name] = Repository(asked.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b"*.bin filter=lfs\n"}, "initial commit")
        self._json(url)

    def _branch(self, body: bytes, name: str, branch: str) -> None:
        repo = self._repo(name)
        repo.branches.setdefault(branch, repo.branches["main"])
        self._json({})

    def _info(self, body: bytes, name: str, revision: str | None) -> None:
        repo = self._repo(name)
        try:
            number, files = repo.at(revision or "main")
        except KeyError:
            raise _Refused(404, "RevisionNotFound") from None
        siblings = [{"rfilename": path} for path in files]
        self._json({"id": name, "sha": number, "private": repo.private, "siblings": siblings, "tags": []})

    def _tree(self, body: bytes, name: str, revision: str) -> None:
        _, files = self._repo(name).at(revision)
        folders = {path.rpartition("/")[0] for path in files} - {""}
        entries = [{"type": "directory", "path": folder, "oid": "0" * 40} for folder in sorted(folders)]
        self._json([*entries, *(_entry(path, content) for path, content in files.items())])

    def _check_card(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def _preupload(self, body: bytes, name: str, branch: str) -> None:
        self._repo(name)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": modes})

    def _batch(self, body: bytes, name: str) -> None:
        objects = []
        for one in json.loads(body)["objects"]:
            needed = {"actions": {"upload": {"href": f"{self.hub.address}/large/{one['oid']}"}}}
            objects.append({"oid": one["oid"], "size": one["size"], **({} if one["oid"] in self.hub.large else needed)})
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, body: bytes, oid: str) -> None:
        if _sha256(body) != oid:
            raise _Refused(400)
        self.hub.large[oid] = body
        self._send(200, b"")

    def _commit(self, body: bytes, name: str, branch: str) -> None:
        repo, message = self._repo(name), ""
        files = dict(repo.at(branch)[1])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.hub.large[value["oid"]]
        number = repo.commit(branch, files, message)
        self._json({"commitUrl": f"{self.hub.address}/{name}/commit/{number}", "commitOid": number})

    def _resolve(self, body: bytes, name: str, revision: str, path: str, *, cut: bool) -> None:
        number, files = self._repo(name).at(revision)
        if path not in files:
            raise _Refused(404, "EntryNotFound")
        content = files[path]
        sent = bytes(len(content)) if path == self.hub.damaged else content
        is_large = len(content) >= LARGE
        headers = {"X-Repo-Commit": number, "ETag": f'"{_sha256(content) if is_large else _blob(content)}"'}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked:
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._send(206, sent[start:], headers, cut=cut)
        self._send(200, sent, headers, cut=cut)


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: dict[str, Callable[..., None]] = {
    "POST /api/repos/create": _Handler._create,
    "POST /api/validate-yaml": _Handler._check_card,
    f"POST /api/models/{_NAME}/branch/(.+)": _Handler._branch,
    f"POST /api/models/{_NAME}/preupload/(.+)": _Handler._preupload,
    f"POST /api/models/{_NAME}/commit/(.+)": _Handler._commit,
    f"GET /api/(?:models|datasets)/{_NAME}(?:/revision/(.+))?": _Handler._info,
    f"GET /api/(?:models|datasets)/{_NAME}/tree/(.+?)/?": _Handler._tree,
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": _Handler._batch,
    r"PUT /large/(\w+)": _Handler._store,
    f"(?:HEAD|GET) (?:/datasets)?/{_NAME}/resolve/([^/]+)/(.+)": _Handler._resolve,
}


def use(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let `huggingface_hub` talk to this hub in this process, with its token, and without waiting between attempts.

    Args:
        hub: The hub, which listens.
        monkeypatch: Undoes it.
        folder: A folder without a stored token.
    """
    constants = pytest.importorskip("huggingface_hub.constants")
    settings = {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(folder / "no-token"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub that listens until the context ends."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
