"""The load test's Jobs beside a kubectl of words: what is deleted, and what a failure says. No cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster import loadjob
from tests.cluster.commands import COMMAND_TIMEOUT_S, CommandFailed, Kubectl
from tests.cluster.parameters import Parameters

OBJECTS = loadjob.manifest(Parameters())


@dataclass(frozen=True)
class Words(Kubectl):
    """Answers as it is told to, and keeps what it was asked."""

    answer: Callable[[tuple[str, ...], str | None], str]
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, *arguments: str, given: str | None = None, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        self.asked.append(arguments)
        return self.answer(arguments, given)

    def deleted(self) -> list[str]:
        return [arguments[1] for arguments in self.asked if arguments[0] == "delete"]


def test_everything_made_is_deleted() -> None:
    """Newest first, and nothing before the block is over."""
    kubectl = Words("", "somewhere", lambda *_: "")

    with loadjob.applied(kubectl, OBJECTS, "sk-key"):
        assert kubectl.deleted() == []

    own = ["Job/loadtest-workers", "Job/loadtest", "Service/loadtest"]
    assert kubectl.deleted() == [*own, "secret/loadtest-key", "configmap/loadtest-scaling", "configmap/loadtest"]


def test_what_was_there_before_stays() -> None:
    """In a given namespace somebody's Job of that name makes `create` fail: it is not deleted, what was made before it
    is."""

    def answer(arguments: tuple[str, ...], given: str | None) -> str:
        if given and given.startswith("{") and json.loads(given)["metadata"]["name"] == "loadtest-workers":
            raise CommandFailed(["kubectl", *arguments], "AlreadyExists")
        return ""

    kubectl = Words("", "somewhere", answer)

    with pytest.raises(CommandFailed, match="AlreadyExists"), loadjob.applied(kubectl, OBJECTS, "sk-key"):
        pytest.fail("The block ran without its workers.")

    assert "Job/loadtest" in kubectl.deleted() and "Job/loadtest-workers" not in kubectl.deleted()


@pytest.mark.parametrize(
    ("log", "says"),
    [("KeyError: 'm'", r"Failed; its log ends\nKeyError: 'm'"), (None, r"Failed; its log ends\n.*no such pod")],
)
def test_a_job_that_failed_ends_the_wait_with_its_log(tmp_path: Path, log: str | None, says: str) -> None:
    """At once, and with its last lines, or with why there are none."""

    def answer(arguments: tuple[str, ...], given: str | None) -> str:
        if arguments[0] == "get":
            return json.dumps({"status": {"conditions": [{"type": "Failed", "status": "True"}]}})
        if log is None:
            raise CommandFailed(["kubectl", *arguments], "no such pod")
        return log

    kubectl = Words("", "somewhere", answer)

    with pytest.raises(AssertionError, match=says):
        loadjob.finished(kubectl, Parameters(folder=tmp_path))

    assert kubectl.asked[-1] == ("logs", "job/loadtest", "--tail=100")
