"""Two cells before one gateway: both answer at once, one falls silent, comes back empty, or names the dead."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import openai
import pytest
import yaml

from serving import config
from serving.engine.directory import Listing
from serving.wire import DIRECTORY_ROUTE, ReplicaReport, ReplicaState
from tests.stack.conftest import SMOLLM2
from tests.stack.running import Stack, free_port
from tests.waiting import until

QUESTION = [{"role": "user", "content": "Name the capital of France."}]


class SecondCell:
    """A directory of another cell: the production listing behind a plain HTTP server, which can be killed."""

    def __init__(self, port: int) -> None:
        self.listing = Listing("second", str(time.monotonic_ns()), time.monotonic)
        self.asked = 0
        cell = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                cell.asked += 1
                body = msgspec.json.encode(cell.listing.answer())
                self.send_response(200 if self.path == DIRECTORY_ROUTE else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def gateway(stack: Stack, tmp_path: Path) -> Iterator[tuple[openai.OpenAI, int]]:
    """A gateway of its own before the stack's cell and a second one; yields a client and the second cell's port."""
    port, second = free_port(), free_port()
    shutil.copy(stack.home / "plane.secret", tmp_path / "plane.secret")
    settings = config.override(
        config.load(environ={}),
        gateway={"port": port, "directories": (stack.directory_url(), f"http://127.0.0.1:{second}")},
    ).model_copy(update={"home": tmp_path})
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    line = [sys.executable, "-m", "serving", "--settings", str(tmp_path / "settings.yaml"), "gateway"]
    with subprocess.Popen(line, stderr=subprocess.DEVNULL) as process:
        until((tmp_path / "admin.key").exists)
        key = (tmp_path / "admin.key").read_text().strip()
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0), second
        process.terminate()


def test_no_request_fails_while_a_second_cell_comes_goes_and_errs(
    stack: Stack, gateway: tuple[openai.OpenAI, int]
) -> None:
    """Both cells list the engine, the second also a dead one; it is killed, restarted empty, and nothing fails."""
    client, port = gateway
    (listed,) = [it.report for it in stack.listed() if it.report.state is ReplicaState.READY]
    dead = ReplicaReport("dead", SMOLLM2, f"http://127.0.0.1:{free_port()}", ReplicaState.READY)

    def ask() -> str:
        answer = client.chat.completions.create(model=SMOLLM2, messages=QUESTION, temperature=0, max_tokens=16)
        return answer.choices[0].message.content or ""

    until(lambda: _knows(client))
    answers = [ask()]
    for reports in ((listed, dead), ()):
        cell = SecondCell(port)
        for report in reports:
            cell.listing.record(report)
        until(partial(_was_asked, cell))
        answers += [ask() for _ in range(4)]
        cell.stop()
        answers += [ask() for _ in range(2)]
    assert all("Paris" in answer for answer in answers)


def _knows(client: openai.OpenAI) -> bool:
    try:
        return SMOLLM2 in {model.id for model in client.models.list()}
    except openai.APIConnectionError:
        return False


def _was_asked(cell: SecondCell) -> bool:
    return cell.asked > 1
