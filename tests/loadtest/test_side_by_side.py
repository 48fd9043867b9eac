"""Gateways side by side: each that a benchmark compares stands, answers, and its turns are counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loadtest.audit_bench import audited_gateway, unaudited_gateway
from loadtest.observing_bench import counting_gateway, silent_gateway
from loadtest.relay_bench import read_streams
from loadtest.side_by_side import Stand, Target, spent_s, standing


@pytest.mark.parametrize(
    "targets",
    [
        {"audited": audited_gateway, "unaudited": unaudited_gateway},
        {"counting": counting_gateway, "silent": silent_gateway},
    ],
    ids=["audit", "observing"],
)
def test_what_a_benchmark_compares_answers(tmp_path: Path, targets: dict[str, Target]) -> None:
    """With what is taken out of it taken out; the turn that warms up is not counted."""

    def ask(stand: Stand) -> None:
        asyncio.run(read_streams(stand.url, stand.key, 2))

    with standing(tmp_path, 3, targets) as stands:
        spent = spent_s(stands, 2, ask)
    assert [len(of) for of in spent] == [2, 2] and all(seconds > 0 for of in spent for seconds in of)
