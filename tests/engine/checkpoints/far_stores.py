"""A model hub and an S3 bucket in one small server, as far as the two client libraries ask: there is none of either here.

Sources: huggingface.co/docs/hub/api, docs.aws.amazon.com/AmazonS3/latest/API (ListObjectsV2, GetObject).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

COMMIT = "c" * 40


class FarStores(ThreadingHTTPServer):
    """Holds the same files as every repository but `absent` ones, and as bucket `bucket`, prefix `model/`."""

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(files)
        #: Path → how often its bytes were asked for.
        self.sent: dict[str, int] = {}
        #: After so many bytes of a file the connection breaks, until this is None again.
        self.breaks_after: int | None = None
        #: Repositories that the hub does not have.
        self.absent: set[str] = set()
        #: What every request to the hub is answered with, if not None.
        self.status: int | None = None
        self.error_code = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def far_stores(files: Mapping[str, bytes]) -> Iterator[FarStores]:
    server = FarStores(files)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FarStores

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *arguments: object) -> None:
        """Nobody reads it."""

    def _answer(self, *, with_body: bool) -> None:
        parts = urlsplit(self.path)
        if self.server.status is not None:
            self._send(self.server.status, b"{}", {"X-Error-Code": self.server.error_code}, with_body)
        elif parts.path.startswith("/api/models/"):
            owner, name = parts.path.split("/")[3:5]
            if f"{owner}/{name}" in self.server.absent:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
                return
            self._send(200, json.dumps(self._described(f"{owner}/{name}", parts.path)).encode(), {}, with_body)
        elif "/resolve/" in parts.path:
            self._file(parts.path.rpartition("/resolve/")[2].partition("/")[2], with_body)
        elif "list-type" in parse_qs(parts.query):
            self._send(200, self._listing().encode(), {"Content-Type": "application/xml"}, with_body)
        else:
            self._file(parts.path.rpartition("/model/")[2], with_body)

    def _described(self, repository: str, path: str) -> object:
        names = sorted(self.server.files)
        if "/tree/" in path:
            return [
                {"type": "file", "path": name, "size": len(self.server.files[name]), "oid": "0" * 40} for name in names
            ]
        return {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}

    def _listing(self) -> str:
        entries = "".join(
            f"<Contents><Key>model/{escape(name)}</Key><Size>{len(content)}</Size><ETag>&quot;e&quot;</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for name, content in sorted(self.server.files.items())
            if "/" not in name
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"

    def _file(self, name: str, with_body: bool) -> None:
        content = self.server.files.get(name)
        if content is None:
            self._send(404, b"", {}, with_body)
            return
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        }
        if with_body:
            self.server.sent[name] = self.server.sent.get(name, 0) + 1
        self._send(200, content, headers, with_body)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if not with_body:
            return
        limit = self.server.breaks_after
        self.wfile.write(body if limit is None else body[:limit])
        if limit is not None and len(body) > limit:
            self.close_connection = True
            self.connection.close()
