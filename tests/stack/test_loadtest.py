"""The load test's users are served by the real stack, and its counts are the ledger's."""

from pathlib import Path

from tests.loadtest.running import loadtest
from tests.stack.conftest import SMOLLM2
from tests.stack.running import Stack
from tests.waiting import until


async def test_every_user_is_served(stack: Stack, tmp_path: Path) -> None:
    """Chats, agents with tools and documents: vLLM takes what they send, and bills the tokens that they counted."""
    before = {row.request_id for row in stack.ledger()}
    done = await loadtest(
        "--url", stack.url, "--model", SMOLLM2, "--mix", "chat=1,agent=1,document=1", "--rate", "0.8",
        "--duration-s", "10", "--drain-s", "120", "--token-scale", "0.1", key=stack.key, folder=tmp_path,
    )  # fmt: skip
    totals = done.figures.totals
    assert totals.failed == 0, done.said
    assert set(done.figures.latencies) == {"all", "chat", "agent", "document"}

    def billed() -> bool:
        rows = [row for row in stack.ledger() if row.request_id not in before]
        return len(rows) == totals.requests and sum(row.completion_tokens for row in rows) == totals.output_tokens

    until(billed, 20, 0.2)
