"""A stand-in for `vllm serve` where only its place matters: it takes the same line, has the same processes, says a token.

It writes what it was given to `$SCRIPTED_VLLM_RECORDS/PORT.json`: its devices and its command line. It says that a request
runs as long as there is a file `busy` beside, finds every text unlikely as long as there is a file `nonsense`, and writes a
dot to `PORT.looks` each time it is asked for its metrics. With `$SCRIPTED_VLLM_BROKEN` in its environment it ends at once, as
an engine on a bad GPU does; with `$SCRIPTED_VLLM_LOADS_S` it listens so many seconds later, as one that loads its weights does.
"""

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec

from serving.config import EngineSettings
from serving.engine.command import EngineSpec, Member, Parallel
from serving.engine.members import expected_members
from serving.wire import Task

RECORDS = Path(os.environ["SCRIPTED_VLLM_RECORDS"])

#: Of the texts that a sound engine of a model that embeds is asked about: two that are alike and one that is not.
EMBEDDINGS = b'{"data": [{"embedding": [1.0, 0.0]}, {"embedding": [1.0, 0.0]}, {"embedding": [0.0, 1.0]}]}'
NONSENSE = b'{"choices": [{"text": "a", "prompt_logprobs": [null, {"1": {"logprob": -50.0}}]}]}'


def flag(name: str, default: int) -> int:
    return int(sys.argv[sys.argv.index(name) + 1]) if name in sys.argv else default


def spec() -> EngineSpec:
    """The engine that the flags describe."""
    parallel = Parallel(
        tensor=flag("--tensor-parallel-size", 1),
        pipeline=flag("--pipeline-parallel-size", 1),
        data=flag("--data-parallel-size", 1),
        expert="--enable-expert-parallel" in sys.argv,
    )
    plain = EngineSpec("m", "", Task.GENERATE, 0, EngineSettings(api_servers=flag("--api-server-count", 1)), "", "", "")
    return msgspec.structs.replace(plain, parallel=parallel, nodes=flag("--nnodes", 1))


class Handler(BaseHTTPRequestHandler):
    """Healthy, and one token long."""

    def do_GET(self) -> None:
        running = int((RECORDS / "busy").exists())
        path = self.path.partition("?")[0]
        if path == "/metrics":
            with (RECORDS / f"{flag('--port', 0)}.looks").open("a") as looks:
                looks.write(".")
        self._answer(f"vllm:num_requests_running {running}\n".encode() if path == "/metrics" else b"{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/embeddings":
            self._answer(EMBEDDINGS)
        else:
            self._answer(NONSENSE if (RECORDS / "nonsense").exists() else b'{"choices": [{"text": "a"}]}')

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    if "SCRIPTED_VLLM_BROKEN" in os.environ:
        sys.exit(1)
    port = flag("--port", 0)
    record = {"devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "line": sys.argv, "pid": os.getpid()}
    (RECORDS / f"{port}.json").write_text(json.dumps(record))
    for title in expected_members(spec(), Member(rank=flag("--node-rank", 0))):
        subprocess.Popen(["bash", "-c", f"exec -a VLLM::{title} sleep 36000"])
    time.sleep(float(os.environ.get("SCRIPTED_VLLM_LOADS_S", "0")))
    host = sys.argv[sys.argv.index("--host") + 1]
    ThreadingHTTPServer((host, port), Handler).serve_forever()


if __name__ == "__main__":
    main()
