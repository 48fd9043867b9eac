"""A replica with nothing new to say is heard less often, and one with something at once."""

from __future__ import annotations

import msgspec

from serving.config import EngineSettings
from serving.engine.autoscale import STALE_S
from serving.engine.directory import COMPLETE_AFTER_S
from serving.engine.heartbeat import REPEATED_AFTER_S, Heartbeat
from serving.wire import EngineLoad, ReplicaReport, ReplicaState
from tests.clock import Clock

REPORT = ReplicaReport("a", "m", "http://127.0.0.1:1", ReplicaState.READY)


def test_the_same_report_is_repeated_after_a_while() -> None:
    """Counted from the last that arrived: one that did not is sent again at once."""
    clock = Clock()
    beat = Heartbeat(clock)
    assert beat.is_due(REPORT) and beat.is_due(REPORT)
    beat.arrive(REPORT)
    assert not beat.is_due(REPORT)
    clock.advance(REPEATED_AFTER_S)
    assert beat.is_due(REPORT)


def test_whatever_is_new_is_sent() -> None:
    """A state, and a load as well: a directory decides by it."""
    beat = Heartbeat(Clock())
    beat.arrive(REPORT)
    assert beat.is_due(msgspec.structs.replace(REPORT, state=ReplicaState.DRAINING))
    assert beat.is_due(msgspec.structs.replace(REPORT, load=EngineLoad(running_requests=1)))


def test_directories_are_made_for_it() -> None:
    """No longer than the longest heartbeat that may be set, so that a restarted directory has every report in time, and one
    that is lost makes no replica stale."""
    (most,) = [it.le for it in EngineSettings.model_fields["heartbeat_s"].metadata if hasattr(it, "le")]
    assert most >= REPEATED_AFTER_S and min(COMPLETE_AFTER_S, STALE_S) > 2 * REPEATED_AFTER_S
