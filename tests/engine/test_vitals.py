"""A replica sees what the processes of its engine do."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from serving.config import EngineSettings
from serving.engine import processes
from serving.engine.command import EngineSpec
from serving.engine.engine import running
from serving.wire import Task
from tests.waiting import until

SCRIPT = Path(__file__).with_name("scripted_vllm.py")


async def test_a_stopped_process_of_a_running_engine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through its supervisor, which is no child of the replica's."""
    monkeypatch.setenv("SCRIPTED_VLLM_RECORDS", str(tmp_path))
    (tmp_path / "plane.secret").write_text("s3cret\n")
    settings = EngineSettings(program=(sys.executable, str(SCRIPT)))
    folders = (str(tmp_path / "plane.secret"), str(tmp_path), str(tmp_path))
    async with running(EngineSpec("m", str(tmp_path), Task.GENERATE, 1024, settings, *folders)) as engine:
        await engine.until_joined()
        vitals = engine.vitals()
        assert vitals.read().stopped is None
        (core,) = [it for it in _marked() if processes.role(it) == "EngineCore"]
        os.kill(core.pid, signal.SIGSTOP)
        until(lambda: vitals.read().stopped == "EngineCore", 10)


def _marked() -> list[psutil.Process]:
    """Processes of this process's engines, whose parents are not below it."""
    own = f"{os.getpid()}:"
    return [it for it in processes.members() if it.environ()[processes.TREE_VARIABLE].startswith(own)]
