"""Two stacks on one machine do not meet, and a stack that is stopped leaves nothing, whenever it is stopped."""

import signal
import tempfile
from pathlib import Path

import openai
import pytest

from tests.stack.conftest import SMOLLM2, TINY
from tests.stack.http import bearer, call
from tests.stack.running import Stack
from tests.waiting import until


def test_two_stacks_run_side_by_side(stack: Stack, tiny: Stack) -> None:
    """Different ports and homes: each serves its own model, with its own keys, to its own tenants."""
    for mine, other, model in ((stack, tiny, SMOLLM2), (tiny, stack, TINY)):
        client = openai.OpenAI(base_url=f"{mine.url}/v1", api_key=mine.key)
        assert model in {card.id for card in client.models.list()}
        assert call(mine.url, "GET", "/v1/models", headers=bearer(other.key))[0] == 401
        assert call(mine.directory_url(), "GET", "/directory", headers=bearer(other.secret))[0] == 401


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
