"""What policies cost is printed beside calls that have none."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from loadtest.policy_bench import EVERY, Installation, lines, measured
from serving.gateway.policies import NO_POLICY


def test_it_measures_calls_with_and_without_policies(tmp_path: Path) -> None:
    """All of them admitted and settled, with a ratio of rounds that took turns."""
    with ExitStack() as opened:
        plain = Installation(opened, tmp_path / "a", 2, NO_POLICY, NO_POLICY)
        bounded = Installation(opened, tmp_path / "b", 2, EVERY, EVERY)
        printed = list(lines(measured({"no policies": plain, "every limit": bounded})))
    assert [line.split("  ")[0] for line in printed] == ["no policies", "every limit"]
    assert printed[0].endswith("1.00x") and all(" us " in line for line in printed)
