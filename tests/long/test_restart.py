"""A home outlives the stack: what was made at the first start is there at the second."""

import time
from pathlib import Path

import pytest

from tests.stack.conftest import SMOLLM2
from tests.stack.http import bearer, call
from tests.stack.running import Stack, running

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

CHAT = {
    "model": SMOLLM2,
    "messages": [{"role": "user", "content": "Name the capital of France."}],
    "max_tokens": 16,
    "temperature": 0,
}


def ask(stack: Stack, key: str) -> bytes:
    status, _, answer = call(stack.url, "POST", "/v1/chat/completions", CHAT, bearer(key))
    assert status == 200, answer
    return answer


def test_a_second_start_keeps_keys_and_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The administrator's key and a tenant's own open the second stack too, and its ledger begins with the first's."""
    first_at = time.monotonic()
    with running(tmp_path, SMOLLM2) as stack:
        first_s, admin_key, secret = time.monotonic() - first_at, stack.key, stack.secret
        stack.command("tenants", "create", "physics")
        team_key = stack.command("keys", "create", "physics", "--quiet").strip()
        for key in (admin_key, team_key):
            assert b"Paris" in ask(stack, key)
    rows = stack.ledger()
    assert [(row.tenant, row.outcome) for row in rows] == [("default", "ok"), ("physics", "ok")]

    second_at = time.monotonic()
    with running(tmp_path, SMOLLM2) as stack:
        second_s = time.monotonic() - second_at
        assert (stack.key, stack.secret) == (admin_key, secret)
        for key in (admin_key, team_key):
            assert b"Paris" in ask(stack, key)
    assert stack.ledger()[: len(rows)] == rows and len(stack.ledger()) == 2 * len(rows)
    with capsys.disabled():
        print(f"\nready after {first_s:.0f} s, on the same home again after {second_s:.0f} s")
