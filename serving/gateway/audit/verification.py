"""Verification: were entries changed, removed, added or reordered? Pure: over entries and checkpoints, wherever those come from.

A chain alone shows every change within it, unless all that follows was computed anew, and no cut of its end. Checkpoints show both as far
as they cover: those in the chains unless the forger had the pepper too, those that were kept elsewhere in any case.
A gateway that was killed leaves a chain without an end entry; whether anything behind its last checkpoint was cut, nothing can tell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import UTC, datetime

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from serving.gateway.audit import checkpoints
from serving.gateway.audit.chain import GENESIS, Entry, Kind, follows
from serving.gateway.audit.checkpoints import Checkpoint, is_genuine
from serving.gateway.identity.acts import ActKind

#: Findings that are told; a table that was rewritten would have one for each entry.
FINDINGS_MAX = 1000


class Finding(msgspec.Struct, frozen=True):
    """What is wrong with one chain, and where."""

    writer: str
    number: int
    #: When the entry was written, as it says; None where it is missing.
    at_us: int | None
    what: str

    def sentence(self) -> str:
        when = "" if self.at_us is None else f" of {moment(self.at_us)}"
        return f"Chain {self.writer}, number {self.number}{when}: {self.what}."


class Tail(msgspec.Struct, frozen=True):
    """Entries at the end of a chain that no checkpoint covers: whether others followed them, nothing tells."""

    writer: str
    first: int
    last: int
    since_us: int
    #: It has an entry that says that the process stopped.
    has_ended: bool


class Report(msgspec.Struct):
    """What was seen and what is wrong with it."""

    entries: int = 0
    chains: int = 0
    #: Genuine ones, in the chains and beside them.
    checkpoints: int = 0
    since_us: int | None = None
    findings: list[Finding] = []
    tails: list[Tail] = []

    @property
    def is_clean(self) -> bool:
        return not self.findings


class _Prune(msgspec.Struct, frozen=True):
    """As much of such an act's body as counts here."""

    details: dict[str, object]


def verify(
    entries: Iterable[Entry],
    statements: Iterable[Entry],
    given: Iterable[Checkpoint],
    trusted: Collection[Ed25519PublicKey],
) -> Report:
    """Verify entries, by writer and ascending number, against the checkpoints in them and those that are given.

    `statements` are those of them that are checkpoints, gone through before: one chain's may stand in another.
    """
    verification = _Verification(trusted)
    for checkpoint in given:
        verification.expect(checkpoint)
    for entry in statements:
        verification.expect_elsewhere(entry)
    for entry in entries:
        verification.take(entry)
    return verification.report()


def moment(at_us: int) -> str:
    """To the second, in UTC."""
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Chain:
    """What is known of the chain that is gone through."""

    def __init__(self, first: Entry) -> None:
        self.writer = first.writer
        self.first = first
        self.last: Entry | None = None
        #: The highest number that a genuine checkpoint covers.
        self.covered = 0
        #: The first entry behind it that is more than another checkpoint.
        self.uncovered: Entry | None = None
        self.has_ended = False
        self.prunes: list[tuple[int, int]] = []


class _Verification:
    def __init__(self, trusted: Collection[Ed25519PublicKey]) -> None:
        self._trusted = trusted
        self._report = Report()
        self._expected: dict[str, dict[int, list[Checkpoint]]] = defaultdict(lambda: defaultdict(list))
        self._chain: _Chain | None = None
        self._writers: set[str] = set()
        #: What the first entries of chains that do not begin at their beginning say of the ones before them.
        self._cut: list[Checkpoint] = []
        #: Checkpoints of entries that are missing at the beginning, or with the whole chain.
        self._missing: list[Checkpoint] = []
        self._pruned_before_us = 0

    def expect(self, checkpoint: Checkpoint) -> None:
        """Entries must keep to a checkpoint."""
        if not is_genuine(checkpoint, self._trusted):
            self._find(checkpoint.writer, checkpoint.number, None, _forged(checkpoint))
            return
        self._report.checkpoints += 1
        self._expected[checkpoint.writer][checkpoint.number].append(checkpoint)

    def expect_elsewhere(self, entry: Entry) -> None:
        """The same for a checkpoint in one chain of another."""
        checkpoint = checkpoints.read(entry.body)
        if checkpoint is not None and checkpoint.writer != entry.writer and is_genuine(checkpoint, self._trusted):
            self._expected[checkpoint.writer][checkpoint.number].append(checkpoint)

    def take(self, entry: Entry) -> None:
        """The next entry."""
        self._report.entries += 1
        if self._report.since_us is None or entry.written_at_us < self._report.since_us:
            self._report.since_us = entry.written_at_us
        chain = self._chain
        if chain is None or chain.writer != entry.writer:
            chain = self._begin(entry)
        self._check(chain, entry)
        self._take_in(chain, entry)
        chain.last = entry

    def report(self) -> Report:
        """What was found, when all were taken."""
        self._finish()
        for writer, expected in self._expected.items():
            if writer not in self._writers:
                self._missing += [max((it for them in expected.values() for it in them), key=lambda it: it.number)]
        for checkpoint in self._cut:
            if checkpoint.written_at_us >= self._pruned_before_us:
                what = "the entries up to it are missing, and no act says that they were pruned"
                self._find(checkpoint.writer, checkpoint.number, checkpoint.written_at_us, what)
        for checkpoint in self._missing:
            if checkpoint.written_at_us >= self._pruned_before_us:
                what = f"it is missing, and was signed at {moment(checkpoint.signed_at_us)}"
                self._find(checkpoint.writer, checkpoint.number, checkpoint.written_at_us, what)
        return self._report

    def _begin(self, entry: Entry) -> _Chain:
        self._finish()
        if entry.writer in self._writers:
            self._find(entry.writer, entry.number, entry.written_at_us, "it stands apart from its chain")
        self._writers.add(entry.writer)
        self._report.chains += 1
        self._chain = _Chain(entry)
        return self._chain

    def _check(self, chain: _Chain, entry: Entry) -> None:
        """Does the entry follow the one before it?"""
        last = chain.last
        if last is None:
            previous = self._before_first(entry)
        elif entry.number == last.number + 1:
            previous = last.digest
            if chain.has_ended and entry.kind != Kind.CHECKPOINT:
                self._complain(entry, "it was added behind the chain's end")
        else:
            previous = None
            gap = entry.number - last.number - 1
            missing = f"the {gap} entries before it are missing" if gap > 1 else "the entry before it is missing"
            self._complain(entry, missing if gap > 0 else "it is out of order")
        if previous is not None and not follows(entry, previous):
            self._complain(entry, "it was changed after it was written, or the entry before it was exchanged")

    def _before_first(self, entry: Entry) -> bytes | None:
        """The digest that the first entry follows; None where nothing tells."""
        if entry.number == 1:
            if entry.kind != Kind.BEGIN:
                self._complain(entry, "it stands where the chain's beginning was")
            return GENESIS
        checkpoint = checkpoints.read(entry.body) if entry.kind == Kind.CHECKPOINT else None
        if checkpoint is None or checkpoint.writer != entry.writer or checkpoint.number != entry.number - 1:
            self._complain(entry, "the entries before it are missing")
            return None
        self._cut.append(checkpoint)
        if any(it.digest != checkpoint.digest for it in self._expected[entry.writer].pop(checkpoint.number, ())):
            self._complain(entry, "it does not follow what was signed before it")
        return _digest(checkpoint)

    def _take_in(self, chain: _Chain, entry: Entry) -> None:
        """What the entry says of its chain, and what checkpoints say of the entry."""
        if entry.kind == Kind.CHECKPOINT:
            self._take_checkpoint(chain, entry)
        else:
            chain.uncovered = chain.uncovered or entry
        chain.has_ended = chain.has_ended or entry.kind == Kind.END
        if entry.kind == ActKind.AUDIT_PRUNE:
            chain.prunes.append((entry.number, _before(entry)))
        for checkpoint in self._expected[entry.writer].pop(entry.number, ()):
            self._compare(chain, entry, checkpoint)

    def _take_checkpoint(self, chain: _Chain, entry: Entry) -> None:
        checkpoint = checkpoints.read(entry.body)
        if checkpoint is None or not is_genuine(checkpoint, self._trusted):
            self._complain(entry, "it is no checkpoint" if checkpoint is None else _forged(checkpoint))
            return
        self._report.checkpoints += 1
        if checkpoint.writer != entry.writer:
            return
        before = chain.last
        if before is not None and checkpoint.number == before.number:
            self._compare(chain, before, checkpoint)
        elif before is not None:
            self._complain(entry, "its checkpoint is not of the entry before it")
        else:
            chain.covered = checkpoint.number

    def _compare(self, chain: _Chain, entry: Entry, checkpoint: Checkpoint) -> None:
        if entry.digest != _digest(checkpoint):
            when = moment(checkpoint.signed_at_us)
            self._complain(entry, f"it, or one before it, is not what was signed at {when}")
            return
        chain.covered = max(chain.covered, checkpoint.number)
        if chain.uncovered is not None and chain.uncovered.number <= checkpoint.number:
            chain.uncovered = None

    def _finish(self) -> None:
        chain = self._chain
        if chain is None or chain.last is None:
            return
        last = chain.last
        left = [it for them in self._expected.pop(chain.writer, {}).values() for it in them]
        behind = [it for it in left if it.number > last.number]
        if behind:
            furthest = max(behind, key=lambda it: it.number)
            what = f"the chain was cut here: {_covered(furthest)} is missing"
            self._find(chain.writer, last.number, last.written_at_us, what)
        # Within a gap they are complained of already.
        self._missing += [it for it in left if it.number < chain.first.number]
        self._pruned_before_us = max(
            [self._pruned_before_us, *(before_us for number, before_us in chain.prunes if number <= chain.covered)]
        )
        if (first := chain.uncovered) is not None:
            tail = Tail(chain.writer, first.number, last.number, first.written_at_us, chain.has_ended)
            self._report.tails.append(tail)

    def _complain(self, entry: Entry, what: str) -> None:
        self._find(entry.writer, entry.number, entry.written_at_us, what)

    def _find(self, writer: str, number: int, at_us: int | None, what: str) -> None:
        if len(self._report.findings) < FINDINGS_MAX:
            self._report.findings.append(Finding(writer, number, at_us, what))


def _covered(checkpoint: Checkpoint) -> str:
    return f"number {checkpoint.number}, which was signed at {moment(checkpoint.signed_at_us)},"


def _forged(checkpoint: Checkpoint) -> str:
    return f"its checkpoint was not signed with a key that is trusted (it names {checkpoint.key})"


def _digest(checkpoint: Checkpoint) -> bytes:
    """Of a genuine one, or of one that is complained of anyway."""
    try:
        return bytes.fromhex(checkpoint.digest)
    except ValueError:
        return b""


def _before(entry: Entry) -> int:
    try:
        before = msgspec.json.decode(entry.body, type=_Prune).details.get("before_us")
    except msgspec.DecodeError:
        return 0
    return before if isinstance(before, int) else 0
