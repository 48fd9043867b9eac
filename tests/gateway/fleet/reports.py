"""What replicas and directories say, with what a test does not care about filled in."""

from __future__ import annotations

from serving.wire import DirectoryAnswer, EngineLoad, Listed, ReplicaReport, ReplicaState


def report(
    replica_id: str,
    state: ReplicaState = ReplicaState.READY,
    *,
    model: str = "m",
    url: str = "",
    running: int = 0,
    adapters: tuple[str, ...] = (),
) -> ReplicaReport:
    url = url or f"http://{replica_id}"
    return ReplicaReport(replica_id, model, url, state, load=EngineLoad(running_requests=running), adapters=adapters)


def answer(
    *reports: ReplicaReport, cell: str = "a", is_complete: bool = True, heard_ago_s: float = 0.1
) -> DirectoryAnswer:
    return DirectoryAnswer(cell, "1", is_complete, tuple(Listed(said, heard_ago_s) for said in reports))
