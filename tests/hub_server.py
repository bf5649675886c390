"""A Hugging Face Hub on loopback: the part of its HTTP interface that downloading models and data sets uses.

Serves repositories out of local folders, with the error codes of the real Hub. huggingface_hub reads its
address when it is imported, so the code under test runs in a process of its own, in `Hub.environment`.

Knows nothing about models or data sets; a file is bytes and a hash here.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

PROJECT = Path(__file__).parents[1]

API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Repository:
    """A folder, seen as the one commit of a repository."""

    folder: Path

    @cached_property
    def files(self) -> dict[str, bytes]:
        """What lies in the folder, by path. Read once: a commit doesn't change."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}

    @cached_property
    def commit(self) -> str:
        listing = "".join(f"{name} {blob_id(content)}\n" for name, content in self.files.items())
        return hashlib.sha1(listing.encode()).hexdigest()

    def holds(self, revision: str) -> bool:
        return revision in ("main", self.commit)

    def entries(self, under: str = "", recursive: bool = True) -> list[dict]:
        """The tree below a folder, as the Hub lists it."""
        prefix = f"{under}/" if under else ""
        found = {}
        for name, content in self.files.items():
            if not name.startswith(prefix):
                continue
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                path = prefix + "/".join(parts[:depth])
                found[path] = {"type": "directory", "path": path, "oid": blob_id(path.encode()), "size": 0}
            found[name] = {"type": "file", "path": name, "oid": blob_id(content), "size": len(content)}
        return [entry for path, entry in found.items() if recursive or "/" not in path.removeprefix(prefix)]


def blob_id(content: bytes) -> str:
    """git's name for a file, which is also its ETag on the Hub."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """Serves `models` and `datasets` (id → folder) while the `with` block runs; then its port is closed.

    Of a repository in `gated` everybody sees the list of files and nobody gets one, as on the Hub. `broken`
    is a status that every request is answered with; a Hub that is `torn` hangs up in the middle of each file.
    `requests` are the paths asked for so far.
    """

    def __init__(
        self,
        models: Mapping[str, Path] | None = None,
        datasets: Mapping[str, Path] | None = None,
        gated: Sequence[str] = (),
        broken: int | None = None,
        torn: bool = False,
    ):
        folders = {"models": models or {}, "datasets": datasets or {}}
        self.repositories = {
            (kind, repo_id): Repository(Path(folder))
            for kind, by_id in folders.items()
            for repo_id, folder in by_id.items()
        }
        self.gated = gated
        self.broken = broken
        self.torn = torn
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a process that knows no other Hub than this one, with its cache in `home`."""
        ours = ("HF_", "HUGGING", "SPACE", "SFT_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {
            **kept,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(PROJECT),
        }


def python(*arguments: str | Path, env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess:
    """Runs this Python with `arguments` to its end; its output is text."""
    return subprocess.run([sys.executable, *arguments], env=env, cwd=cwd, capture_output=True, text=True, timeout=120)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(path)
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.hub.broken:
            self._refuse(self.hub.broken, None)
        elif match := API.fullmatch(path):
            self._api(*match.groups(), asked)
        elif match := RESOLVE.fullmatch(path):
            self._file(*match.groups())
        else:
            self._refuse(404, None)

    do_HEAD = do_POST = do_GET

    def _repository(self, kind: str, repo_id: str, revision: str | None) -> Repository | None:
        """The repository if it can be shown at this revision; None once a refusal has been sent."""
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None:
            self._refuse(404, "RepoNotFound")
            return None
        if revision is not None and not repository.holds(revision):
            self._refuse(404, "RevisionNotFound")
            return None
        return repository

    def _api(
        self, kind: str, repo_id: str, what: str | None, revision: str | None, under: str | None, asked: bytes
    ) -> None:
        repository = self._repository(kind, repo_id, revision)
        if repository is None:
            return
        if what == "tree":
            entries = repository.entries(under or "", "recursive=true" in self.path.lower())
            if entries or not under:
                self._json(entries)
            else:
                self._refuse(404, "EntryNotFound")
        elif what == "paths-info":
            paths = json.loads(asked)["paths"]
            self._json([entry for entry in repository.entries() if entry["path"] in paths])
        else:
            siblings = [{"rfilename": name} for name in repository.files]
            gated = "manual" if repo_id in self.hub.gated else False
            self._json({"id": repo_id, "sha": repository.commit, "siblings": siblings, "gated": gated})

    def _file(self, datasets: str | None, repo_id: str, revision: str, name: str) -> None:
        repository = self._repository(datasets or "models", repo_id, revision)
        if repository is None:
            return
        if repo_id in self.hub.gated:
            self._refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
            return
        content = repository.files.get(name)
        commit = {"X-Repo-Commit": repository.commit}
        if content is None:
            self._refuse(404, "EntryNotFound", commit)
            return
        headers = {**commit, "ETag": f'"{blob_id(content)}"', "Accept-Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            self._answer(200, content, headers)
            return
        first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(206, content[first : last + 1], headers)

    def _json(self, value) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None, headers: Mapping[str, str] | None = None) -> None:
        self._answer(status, b"", {**(headers or {}), **({"X-Error-Code": code} if code else {})})

    def _answer(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.torn and "ETag" in headers:
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        """Silent: the tests read `requests`."""
