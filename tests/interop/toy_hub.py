"""A hub on this machine: as much of the Hugging Face hub's protocol as its client asks for."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + 34 * "0"


class ToyHub(ThreadingHTTPServer):
    """Repositories under their ids, and what was asked for.

    Attributes:
        repositories: folder of each repository by its id.
        gated: ids whose files are refused.
        large: names of the files that the hub keeps outside of git, whatever their size.
        cut: bytes after which a file's download breaks off, by its name; the file is gone then.
        gone: names of files that cannot be had for the moment.
        spoilt: names of files whose last byte comes out wrong.
        requests: (method, path, range) of every request for a file.
    """

    daemon_threads = True

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.gated: set[str] = set()
        self.large = r".*\.safetensors"
        self.cut: dict[str, int] = {}
        self.gone: set[str] = set()
        self.spoilt: set[str] = set()
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def downloads(self) -> list[str]:
        """Names of the files whose content was asked for."""
        return [path for method, path, _ in self.requests if method == "GET"]


@contextlib.contextmanager
def serving(repositories: dict[str, Path]) -> Iterator[ToyHub]:
    """A hub that answers while the block runs."""
    with ToyHub(repositories) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: ToyHub

    def log_message(self, *_: object) -> None:
        """Nothing: tests read `ToyHub.requests`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        found = re.fullmatch(
            r"(?:api/models/)?([^/]+/[^/]+)(?:/(revision|tree|resolve)/([^/]+)(?:/(.+))?)?", path
        )
        if not found or found[1] not in self.server.repositories:
            self._refuse(404, "RepoNotFound")
        elif found[3] not in (None, "main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif found[2] == "tree":
            self._json(self._tree(self.server.repositories[found[1]]))
        elif found[2] == "resolve":
            self._file(found[1], found[4])
        else:
            names = [entry["path"] for entry in self._tree(self.server.repositories[found[1]])]
            siblings = [{"rfilename": name} for name in names]
            self._json({"id": found[1], "sha": COMMIT, "siblings": siblings})

    def _tree(self, folder: Path) -> list[dict]:
        entries = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name, size = str(path.relative_to(folder)), path.stat().st_size
            entry = {"type": "file", "path": name, "size": size, "oid": self._etag(name, path)}
            if re.fullmatch(self.server.large, name):
                entry["lfs"] = {"oid": entry["oid"], "size": size, "pointerSize": 134}
            entries.append(entry)
        return entries

    def _etag(self, name: str, path: Path) -> str:
        large = re.fullmatch(self.server.large, name)
        return (hashlib.sha256 if large else hashlib.sha1)(path.read_bytes()).hexdigest()

    def _file(self, repository: str, name: str) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.command, name, asked))
        path = self.server.repositories[repository] / name
        if repository in self.server.gated:
            return self._refuse(403, "GatedRepo")
        if name in self.server.gone and self.command == "GET":
            return self._refuse(500, "Gone")
        content = path.read_bytes()
        if name in self.server.spoilt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        for key in ("ETag", "X-Linked-ETag"):
            self.send_header(key, f'"{self._etag(name, path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        stop = self.server.cut.pop(name, None)
        if stop is not None:
            self.server.gone.add(name)
        self.wfile.write(content[start:stop])
        return None

    def _json(self, values: object) -> None:
        body = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
