"""Reports: what a directory says of its replicas, as lines for whoever watches a start: each reason once."""

from __future__ import annotations

import urllib.request

import msgspec

from serving.secret import PlaneSecret
from serving.wire import DIRECTORY_ROUTE, DirectoryAnswer, ReplicaReport, ReplicaState

#: Seconds that the directory may take to answer.
_TIMEOUT_S = 5.0


class Reports:
    """The reasons that one directory's replicas have given so far."""

    def __init__(self, directory: str, secret: PlaneSecret) -> None:
        self._url = f"{directory}{DIRECTORY_ROUTE}"
        self._secret = secret
        self._told: set[tuple[str, str]] = set()
        #: Why the last engine failed that did.
        self.last_failure: str | None = None

    def news(self) -> list[str]:
        """A line for each reason that a replica gives now and has not given before; none while the directory is away."""
        request = urllib.request.Request(self._url, headers={"Authorization": f"Bearer {self._secret.sent}"})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                found = msgspec.json.decode(answer.read(), type=DirectoryAnswer)
        except (OSError, msgspec.MsgspecError):
            return []
        return self.of([it.report for it in found.replicas])

    def of(self, reports: list[ReplicaReport]) -> list[str]:
        """The same for these reports. A replica says why it failed, and for how long it waits before it tries again."""
        lines = []
        for report in reports:
            told = (report.replica_id, report.state)
            if report.reason and told not in self._told:
                self._told.add(told)
                lines.append(f"{report.model}: {report.state}: {report.reason}")
                if report.state is ReplicaState.FAILED:
                    self.last_failure = report.reason
        return lines
