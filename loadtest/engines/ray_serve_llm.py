"""Ray Serve LLM's own application, on a Ray of its own: run by the interpreter of its environment, until it is stopped.

    python ray_serve_llm.py PORT FOLDER CONFIGURATION

CONFIGURATION is JSON: what `build_openai_app` takes.
"""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType

import ray
from ray import serve
from ray.serve.llm import build_openai_app

#: Its applications ask for a CPU for each part, which is about placement and not about use: all of them find one.
CPUS = 16
OBJECT_STORE_BYTES = 80 * 1024 * 1024


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def main(port: str, folder: str, configuration: str) -> None:
    """Serve until SIGTERM; the application answers before this waits."""
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        num_cpus=CPUS,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=folder,
    )
    signal.signal(signal.SIGTERM, _stop)  # after Ray, whose own ends without ending what it started
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": int(port)},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        serve.run(build_openai_app(json.loads(configuration)))
        while True:
            signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
