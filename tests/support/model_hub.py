"""A Hugging Face hub on loopback, as far as the real client needs one to download a model."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c0ffee" * 6 + "c0de"
HOLD_SECONDS = 120.0


@dataclass
class Hub:
    """What the hub publishes, and what it was asked.

    Attributes:
        files: by name; ``repository`` has them all at :data:`COMMIT`, as branch ``main``.
        tampered: served in place of the published content.
        held: names of files that are answered once their event is set.
        requests: every path asked for.
    """

    repository: str
    files: dict[str, bytes]
    tampered: dict[str, bytes] = field(default_factory=dict)
    held: dict[str, threading.Event] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def listing(self) -> dict[str, Any]:
        return {
            "id": self.repository,
            "sha": COMMIT,
            "private": False,
            "downloads": 0,
            "tags": [],
            "siblings": [self._entry(name, data) for name, data in self.files.items()],
        }

    def etag(self, name: str) -> str:
        """Large files go by SHA-256, small ones by git's name for the blob."""
        data = self.files[name]
        if name.endswith(".safetensors"):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"sha256": self.etag(name), "size": len(data), "pointerSize": 130}
        else:
            entry["blobId"] = self.etag(name)
        return entry


@contextmanager
def serving(folder: Path, repository: str = "acme/tiny") -> Iterator[Hub]:
    """Publish the files of ``folder`` until the block ends."""
    hub = Hub(repository, {path.name: path.read_bytes() for path in folder.iterdir()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="hub-server")
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.requests.append(self.path)
            path = self.path.partition("?")[0]
            api = f"/api/models/{hub.repository}"
            known = ("main", COMMIT, "refs%2Fpr%2F45")
            if path in (api, *(f"{api}/revision/{revision}" for revision in known)):
                self._answer(200, json.dumps(hub.listing()).encode(), {})
            elif path.startswith(f"{api}/revision/"):
                self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif path.startswith(f"/{hub.repository}/resolve/{COMMIT}/"):
                self._file(path.removeprefix(f"/{hub.repository}/resolve/{COMMIT}/"))
            else:
                self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def _file(self, name: str) -> None:
            if name not in hub.files:
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            if name in hub.held and self.command == "GET":
                assert hub.held[name].wait(HOLD_SECONDS)
            headers = {"ETag": f'"{hub.etag(name)}"', "X-Repo-Commit": COMMIT}
            self._answer(200, hub.tampered.get(name, hub.files[name]), headers)

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    return Handler
