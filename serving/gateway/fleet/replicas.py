"""Replicas: what directories say of them, merged by pure functions over plain data. Silence removes none."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from serving.wire import DirectoryAnswer, ReplicaReport, ReplicaState

#: Reports closer together than this are the same one, seen through the network's jitter.
SAME_REPORT_S = 0.05


class Known(msgspec.Struct, frozen=True):
    """A replica as last reported, and by which cell."""

    report: ReplicaReport
    cell: str
    #: When it reported, on this gateway's clock.
    reported_at: float


def merge(known: Mapping[str, Known], answer: DirectoryAnswer, asked_at: float) -> dict[str, Known]:
    """The fleet after one directory's answer; `asked_at` is when it was asked, so that latency makes no report younger.

    A replica that is missing leaves only when the answer is complete and from the cell that had listed it.
    """
    listed = {entry.report.replica_id for entry in answer.replicas}
    merged = {
        replica_id: replica
        for replica_id, replica in known.items()
        if not (answer.is_complete and replica.cell == answer.cell and replica_id not in listed)
    }
    for entry in answer.replicas:
        replica_id = entry.report.replica_id
        reported_at = asked_at - entry.heard_ago_s
        before = merged.get(replica_id)
        jitter_s = SAME_REPORT_S if before and before.report == entry.report else 0.0
        if before is None or reported_at > before.reported_at + jitter_s:
            merged[replica_id] = Known(entry.report, answer.cell, reported_at)
    return merged


def ready(known: Mapping[str, Known], lost_at: Mapping[str, float], model: str) -> list[Known]:
    """Replicas that may get a call for a model or an adapter: said READY, and after the last refused connection.

    One per address.
    """
    by_url: dict[str, Known] = {}
    for replica_id, replica in known.items():
        report = replica.report
        if model not in served_names(report) or report.state is not ReplicaState.READY or report.rank:
            continue
        if replica.reported_at <= lost_at.get(replica_id, float("-inf")):
            continue
        twin = by_url.get(report.url)
        if twin is None or replica.reported_at > twin.reported_at:
            by_url[report.url] = replica
    return list(by_url.values())


def served_names(report: ReplicaReport) -> tuple[str, ...]:
    """What a replica answers to: its model, and the adapters it offers."""
    return (report.model, *report.adapters)


def is_withdrawn(known: Mapping[str, Known], adapter: str, base: str) -> bool:
    """Does a ready replica of its base no longer have this adapter, while no other offers it?

    While no replica is ready the answer is not known: they may be restarting.
    """
    reports = [replica.report for replica in known.values() if replica.report.model == base]
    is_base_ready = any(report.state is ReplicaState.READY for report in reports)
    return is_base_ready and not any(adapter in report.adapters for report in reports)
