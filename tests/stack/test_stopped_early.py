"""A stack that is stopped leaves nothing, whenever it is stopped."""

import signal
import tempfile
from pathlib import Path

import pytest

from tests.stack.conftest import SMOLLM2
from tests.stack.running import Stack
from tests.waiting import until


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, id="Ctrl-C"), pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.long)],
)
def test_a_stack_stopped_while_it_starts_leaves_nobody(tmp_path: Path, number: signal.Signals) -> None:
    """In the middle of loading an engine, a stop ends every process and removes its scratch folders."""
    starting = Stack(tmp_path, SMOLLM2)
    until(lambda: "server" in starting.engine_members(), 120, 0.2)
    (scratch,) = {it.environ()["TMPDIR"] for name, it in starting.engine_members().items() if name == "server"}
    assert Path(scratch).is_dir() and Path(scratch).parent == Path(tempfile.gettempdir())
    starting.stop(number)  # fails when anybody is left
    assert not Path(scratch).exists()
    assert "Traceback" not in (tmp_path / "up.err").read_text()
