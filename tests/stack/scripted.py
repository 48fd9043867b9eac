"""A stack whose engine is a script: where only processes matter, it starts in a third of the time and of the memory."""

import json
import sys
from pathlib import Path

from tests.stack.running import Stack

SCRIPT = Path(__file__).parents[1] / "engine" / "scripted_vllm.py"
MODEL = "smollm2-135m-instruct"


def scripted(home: Path, *, loads_s: float = 0.0, settings: dict[str, str] | None = None) -> Stack:
    """A starting stack; its engine listens after `loads_s` seconds. `settings` are variables of its environment."""
    records = home / "records"
    records.mkdir(parents=True, exist_ok=True)
    environment = {
        "SERVING_ENGINE__PROGRAM": json.dumps([sys.executable, str(SCRIPT)]),
        "SERVING_ENGINE__MEMORY_SHARE": "0.01",
        "SCRIPTED_VLLM_RECORDS": str(records),
        "SCRIPTED_VLLM_LOADS_S": str(loads_s),
    }
    return Stack(home, MODEL, environment | (settings or {}))
