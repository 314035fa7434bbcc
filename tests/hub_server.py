"""A stand-in for the Hub on 127.0.0.1, for the real huggingface_hub client to talk to.

It holds repositories of models in memory, serves and takes files the way the Hub does (large ones by git-lfs, not by
Xet), misbehaves on demand, and remembers every request.

    with StandInHub() as hub:
        hub.add("owner/name", {"config.json": b"{}", "model.safetensors": weights})
        hub.faults.append(Fault(status=500))
        subprocess.run([sys.executable, "-c", code], env=os.environ | hub.environment(tmp_path))
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

__all__ = ["Fault", "Repository", "Request", "StandInHub", "closed_port"]

LARGE = (".safetensors", ".bin", ".pth", ".onnx", ".png", ".jpg")  # the Hub keeps these by git-lfs


@dataclass
class Repository:
    """A repository: the files of each commit, and the commit that each branch is at."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit({})

    def commit(self, changes: Mapping[str, bytes | None], branch: str = "main") -> str:
        """Add a commit that writes files, or removes those that are None, and return its name."""
        files = {**self.files(branch), **changes}
        kept = {path: content for path, content in files.items() if content is not None}
        digest = hashlib.sha1(repr((len(self.commits), sorted(kept))).encode(), usedforsecurity=False)
        for path in sorted(kept):
            digest.update(kept[path])
        self.commits[digest.hexdigest()] = kept
        self.branches[branch] = digest.hexdigest()
        return digest.hexdigest()

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch or a commit's name stands for."""
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return the files at a revision; none for one that does not exist."""
        return self.commits.get(self.resolve(revision) or "", {})


@dataclass
class Fault:
    """One way to misbehave, for the requests that it fits, as many times as it says.

    Attributes:
        status: Answer with this status and nothing else.
        code: `X-Error-Code` beside the status.
        cut: Close the connection after so many bytes of the body.
        body: Send these bytes in place of the file's, under the file's etag.
        delay: Wait so many seconds before answering.
        pause: Send the body in ten pieces, waiting so many seconds before each.
        meanwhile: Called after the answer: what happens on the Hub while the client is busy.
        path: What the request's path must end with.
        method: The request's method; empty for any.
        times: How often; None for always.
    """

    status: int | None = None
    code: str | None = None
    cut: int | None = None
    body: bytes | None = None
    delay: float = 0
    pause: float = 0
    meanwhile: Callable[[], object] | None = None
    path: str = ""
    method: str = ""
    times: int | None = 1

    def fits(self, method: str, path: str) -> bool:
        """Return whether it is to happen to such a request."""
        return self.times != 0 and self.method in ("", method) and path.endswith(self.path)


@dataclass(frozen=True)
class Request:
    """One request as it arrived: the path without its query, the headers in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class StandInHub:
    """The server; it runs while its `with` block does.

    Args:
        token: What a client must send to write, or to read a private or gated repository; None lets everyone.
    """

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # what git-lfs was given, by sha256
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: _Handler(self, *args))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> StandInHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()  # wakes the answers that are still waiting
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo_id: str, files: Mapping[str, bytes], *, private: bool = False, gated: bool = False) -> str:
        """Add a repository with these files and return its commit."""
        self.repositories[repo_id] = Repository(private, gated)
        return self.repositories[repo_id].commit(files)

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment of a client that talks to this server and keeps everything under `home`."""
        return client_environment(self.url, home)

    def asked(self, method: str = "", path: str = "") -> list[Request]:
        """Return the requests so far with this method (any if empty) and a path that ends so."""
        return [r for r in self.requests if method in ("", r.method) and r.path.endswith(path)]

    def next_fault(self, method: str, path: str) -> Fault:
        """Return the first fault that fits a request, used up by one; a harmless one if none fits."""
        with self.lock:
            for fault in self.faults:
                if fault.fits(method, path):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return Fault()


def client_environment(endpoint: str, home: Path) -> dict[str, str]:
    """Return the environment of a huggingface_hub client of `endpoint`, with no token and all its files in `home`."""
    return {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_CACHE": str(home / "huggingface" / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
        "POSTER_ZOO_HOME": str(home / "poster_zoo"),
        "POSTER_ZOO_HUB_ORG": "",
    }


def closed_port() -> str:
    """Return the address of a port on 127.0.0.1 at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


class _Refused(Exception):
    """An answer that is an error: its status, and the headers by which the client tells the reason."""

    def __init__(self, status: int, code: str | None = None, message: str = "", commit: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self.headers = {name: value for name, value in headers.items() if value}


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: StandInHub, *args: Any) -> None:
        self.hub = hub
        with suppress(ConnectionError):  # a client that has gone away is no fault of the test
            super().__init__(*args)

    def log_message(self, *_: object) -> None:
        """Keep quiet: `hub.requests` is the log."""

    def do_GET(self) -> None:
        """Answer a request of any method: note it, misbehave if told to, find its route."""
        path = unquote(urlsplit(self.path).path)
        request = Request(self.command, path, {k.lower(): v for k, v in self.headers.items()}, self._read_body())
        self.hub.requests.append(request)
        self.fault = self.hub.next_fault(self.command, path)
        self.hub.closing.wait(self.fault.delay)
        try:
            if self.fault.status is not None:
                raise _Refused(self.fault.status, self.fault.code, "as the test asked")
            self._route(request)
        except _Refused as refused:
            self._json({"error": refused.message}, refused.status, refused.headers)
        if self.fault.meanwhile is not None:
            self.fault.meanwhile()

    do_HEAD = do_POST = do_PUT = do_GET

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _route(self, request: Request) -> None:
        for methods, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, request.path)
            if found and request.method in methods.split():
                answer(self, request, **found.groupdict())
                return
        raise _Refused(404, message="the stand-in Hub has no such page")

    # Reading

    def _repository(self, repo_id: str, request: Request, *, write: bool = False) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            raise _Refused(404, "RepoNotFound", "Repository not found")
        known = self.hub.token is None or request.headers.get("authorization") == f"Bearer {self.hub.token}"
        if not known and repository.gated and not write:
            raise _Refused(403, "GatedRepo", f"Access to model {repo_id} is restricted")
        if not known and (repository.private or write):
            raise _Refused(401, "RepoNotFound", "Invalid username or password.")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.resolve(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _send_file(self, request: Request, repo: str, revision: str, path: str) -> None:
        repository = self._repository(repo, request)
        commit = self._commit(repository, revision)
        content = repository.files(commit).get(path)
        if content is None:
            raise _Refused(404, "EntryNotFound", f"{path} does not exist on {revision!r}", commit)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes", "ETag": f'"{_object_id(path, content)}"'}
        if path.endswith(LARGE):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        content = content if self.fault.body is None else self.fault.body
        status, start, last = 200, 0, len(content) - 1
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", "")):
            status, start = 206, int(wanted[1])
            last = min(int(wanted[2] or last), last)
            headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
        self._send(status, content[start : last + 1], headers | {"Content-Type": "application/octet-stream"})

    def _send_info(self, request: Request, repo: str, revision: str = "main") -> None:
        repository = self._repository(repo, request)
        commit = self._commit(repository, revision)
        siblings = [{"rfilename": path} for path in sorted(repository.files(commit))]
        self._json(
            {"id": repo, "modelId": repo, "sha": commit, "private": repository.private, "gated": repository.gated}
            | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0}
        )

    def _send_tree(self, request: Request, repo: str, revision: str, folder: str | None = None) -> None:
        repository = self._repository(repo, request)
        start = f"{folder}/" if folder else ""
        inside = {p: c for p, c in repository.files(self._commit(repository, revision)).items() if p.startswith(start)}
        deep = "true" in map(str.lower, parse_qs(urlsplit(self.path).query).get("recursive", []))
        folders = sorted({start + p.removeprefix(start).split("/")[0] for p in inside if "/" in p.removeprefix(start)})
        shown = {p: c for p, c in inside.items() if deep or "/" not in p.removeprefix(start)}
        listed = [{"type": "directory", "path": path, "size": 0, "oid": _object_id(path, b"")} for path in folders]
        self._json([*listed, *(_describe(path, content) for path, content in sorted(shown.items()))])

    def _send_paths(self, request: Request, repo: str, revision: str) -> None:
        repository = self._repository(repo, request)
        files = repository.files(self._commit(repository, revision))
        asked = parse_qs(request.body.decode())["paths"]
        self._json([_describe(path, files[path]) for path in asked if path in files])

    def _send_refs(self, request: Request, repo: str) -> None:
        branches = self._repository(repo, request).branches
        listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit} for n, commit in branches.items()]
        self._json({"branches": listed, "converts": [], "tags": []})

    def _send_user(self, request: Request) -> None:
        if self.hub.token is not None and request.headers.get("authorization") != f"Bearer {self.hub.token}":
            raise _Refused(401, message="Invalid username or password.")
        self._json({"type": "user", "name": "tester", "fullname": "Tester", "orgs": []})

    # Writing

    def _create(self, request: Request) -> None:
        asked = json.loads(request.body)
        repo_id = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        if self.hub.token is not None and request.headers.get("authorization") != f"Bearer {self.hub.token}":
            raise _Refused(401, message="Invalid username or password.")
        with self.hub.lock:
            exists = repo_id in self.hub.repositories
            if not exists:
                private = asked.get("private", False) or asked.get("visibility") == "private"
                self.hub.repositories[repo_id] = Repository(private=private)
        # The client goes on where a repository is there already, and reads its address from this answer too.
        self._json({"url": f"{self.hub.url}/{repo_id}", "name": repo_id}, 409 if exists else 200)

    def _branch(self, request: Request, repo: str, branch: str) -> None:
        repository = self._repository(repo, request, write=True)
        if branch in repository.branches:
            raise _Refused(409, message="Reference already exists")
        start = json.loads(request.body or b"{}").get("startingPoint", "main")
        repository.branches[branch] = self._commit(repository, start)
        self._json({})

    def _validate_card(self, request: Request) -> None:
        front = re.match(r"---\n(.*?\n)---\n", json.loads(request.body)["content"], re.DOTALL)
        try:
            metadata = yaml.safe_load(front[1]) if front else None
        except yaml.YAMLError as error:
            metadata, problem = None, str(error)
        else:
            problem = "empty or missing yaml metadata in repo card"
        if not isinstance(metadata, dict):
            self._json({"errors": [{"message": problem}], "warnings": []}, 400)
            return
        self._json({"errors": [], "warnings": []})

    def _preupload(self, request: Request, repo: str, revision: str) -> None:
        repository = self._repository(repo, request, write=True)
        there = repository.files(self._commit(repository, revision))
        answer = []
        for file in json.loads(request.body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LARGE) else "regular"
            known = _object_id(path, there[path]) if path in there else None
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known})
        self._json({"files": answer})

    def _lfs_batch(self, request: Request, repo: str) -> None:
        self._repository(repo, request, write=True)
        answer = []
        for wanted in json.loads(request.body)["objects"]:
            if wanted["oid"] not in self.hub.objects:
                wanted["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            answer.append(wanted)
        self._json({"transfer": "basic", "objects": answer}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def _lfs_put(self, request: Request, oid: str) -> None:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise _Refused(400, message="the content does not have the announced sha256")
        self.hub.objects[oid] = request.body
        self._json({})

    def _take_commit(self, request: Request, repo: str, revision: str) -> None:
        repository = self._repository(repo, request, write=True)
        if revision not in repository.branches:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        changes: dict[str, bytes | None] = {}
        for line in request.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "file":
                    changes[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        raise _Refused(400, message=f"LFS pointer to a missing object: {value['path']}")
                    changes[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    changes[value["path"]] = None
                case "deletedFolder":
                    changes |= {p: None for p in repository.files(revision) if p.startswith(value["path"])}
        commit = repository.commit(changes, revision)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}"})

    # Sending

    def _json(self, answer: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"} | dict(headers or {}))

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault.cut is not None and self.fault.cut < len(body):
            self.close_connection = True
            body = body[: self.fault.cut]
        for piece in self._pieces(body):
            self.wfile.write(piece)

    def _pieces(self, body: bytes) -> Iterator[bytes]:
        if not self.fault.pause:
            yield body
            return
        step = len(body) // 10 + 1
        for start in range(0, len(body), step):
            self.hub.closing.wait(self.fault.pause)
            yield body[start : start + step]


def _object_id(path: str, content: bytes) -> str:
    """Return the name that git-lfs (sha256) or git (sha1 of the blob) gives to a file."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _describe(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": _object_id(path, content)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": _object_id(path, content), "size": len(content), "pointerSize": 134}
    return entry


# A dataset's repository has `datasets/` before its name, in its address and in `StandInHub.repositories`.
_REPO = r"(?P<repo>(?:datasets/)?[^/]+/[^/]+)"
_MODEL = r"/api/models/(?P<repo>[^/]+/[^/]+)"
_DATASET = r"/api/(?P<repo>datasets/[^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler._send_file),
    ("GET", _MODEL, _Handler._send_info),
    ("GET", rf"{_MODEL}/revision/(?P<revision>.+)", _Handler._send_info),
    ("GET", rf"{_MODEL}/tree/(?P<revision>[^/]+)", _Handler._send_tree),
    ("GET", rf"{_MODEL}/refs", _Handler._send_refs),
    ("GET", _DATASET, _Handler._send_info),
    ("GET", rf"{_DATASET}/revision/(?P<revision>.+)", _Handler._send_info),
    ("GET", rf"{_DATASET}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler._send_tree),
    ("POST", rf"{_DATASET}/paths-info/(?P<revision>.+)", _Handler._send_paths),
    ("GET", r"/api/whoami-v2", _Handler._send_user),
    ("POST", r"/api/repos/create", _Handler._create),
    ("POST", r"/api/validate-yaml", _Handler._validate_card),
    ("POST", rf"{_MODEL}/branch/(?P<branch>.+)", _Handler._branch),
    ("POST", rf"{_MODEL}/preupload/(?P<revision>.+)", _Handler._preupload),
    ("POST", rf"{_MODEL}/commit/(?P<revision>.+)", _Handler._take_commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler._lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler._lfs_put),
]
