"""OpenAI's client for Node with files and batches; the one for Python is in tests/gateway/api."""

from __future__ import annotations

from pathlib import Path

from tests.clients.test_memory import told_by
from tests.gateway.api.test_responses import storing
from tests.scripted_engine import ScriptedEngine


async def test_its_own_resources_work(tmp_path: Path) -> None:
    """Upload, creation, polling, download of answers and errors, a file that cannot be run, cancellation, lists by pages, deletion."""
    async with ScriptedEngine() as engine, storing(tmp_path, engine) as world:
        told = await told_by("openai_batches.mjs", world)

    assert told == {
        "status": ["completed", {"total": 3, "completed": 2, "failed": 1}, {"night": "1"}],
        "answers": [["a", 200], ["c", 200]],
        "errors": [["b", 400]],
        "file": [True, "processed"],
        "failed": [["model_not_found", 1]],
        "cancelling": "cancelling",
        "cancelled": "cancelled",
        "batches": True,
        "files": [3, True],
        "deleted": [True, "NotFoundError", "NotFoundError"],
    }
