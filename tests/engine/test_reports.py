"""Why an engine did not start is said once, and at once."""

from pathlib import Path

from serving.engine.reports import Reports
from serving.secret import PlaneSecret
from serving.wire import ReplicaReport, ReplicaState


def report(replica_id: str, state: ReplicaState, reason: str | None) -> ReplicaReport:
    return ReplicaReport(replica_id=replica_id, model="smollm2", url="", state=state, reason=reason)


def test_each_reason_is_told_once(tmp_path: Path) -> None:
    """A replica repeats itself twice a second; each of its states is news once, and the last failure is remembered."""
    (tmp_path / "plane.secret").write_text("s3cret\n")
    reports = Reports("http://127.0.0.1:1", PlaneSecret(tmp_path / "plane.secret"))
    assert reports.news() == [], "there is no directory yet"
    failed = report("a", ReplicaState.FAILED, "every port is taken")
    assert reports.of([failed, report("b", ReplicaState.READY, None)]) == ["smollm2: failed: every port is taken"]
    assert reports.of([failed]) == []
    waiting = report("c", ReplicaState.STARTING, "waits 5 s because engines of this model keep failing")
    assert reports.of([failed, waiting]) == [f"smollm2: starting: {waiting.reason}"]
    assert reports.last_failure == "every port is taken"
