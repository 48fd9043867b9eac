"""Backlog: the numbers of what runs without a client that waits."""

from __future__ import annotations

from serving.gateway.observe.backlog import Backlog, families


def test_every_series_is_there_before_there_is_any_work() -> None:
    """At 0, so that a board shows a line and a first increase is seen as one."""
    idle = [(it.name, it.labels, it.value) for family in families(Backlog()) for it in family.samples]
    assert len(idle) == 12 and {value for _, _, value in idle} == {0}
    busy = Backlog({"in_progress": 2}, 7, {"failed": 3}, takeovers=1, stalled_s=9.5)
    values = {(it.name, *it.labels.values()): it.value for family in families(busy) for it in family.samples}
    assert values["serving_gateway_batches", "in_progress"] == 2
    assert values["serving_gateway_batch_lines_total", "failed"] == 3
    assert values["serving_gateway_batch_takeovers_total",] == 1
    assert values["serving_gateway_batch_stalled_seconds",] == 9.5
