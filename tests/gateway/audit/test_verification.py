"""Verification: every change of what a checkpoint covers is found, and an untouched audit is clean."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.gateway.audit import checkpoints
from serving.gateway.audit.chain import Entry, Kind, link
from serving.gateway.audit.verification import FINDINGS_MAX, moment, verify
from tests.gateway.audit.chains import NOON_US, OTHER_SIGNER, SIGNER, Written, verified

#: No example may fail for the machine's pace.
EXAMPLES = settings(deadline=None, max_examples=40)
#: What a process writes, and whether a checkpoint follows.
_STEPS = st.lists(st.tuples(st.sampled_from(["calls", "key.create", "usage.read"]), st.booleans()), max_size=8)


@st.composite
def _chains(draw: st.DrawFn) -> list[Written]:
    chains = []
    for number in range(draw(st.integers(1, 3))):
        chain = Written(f"gateway:{number}")
        for kind, is_signed in draw(_STEPS):
            chain.add(kind, f'{{"n":{len(chain.entries)}}}')
            if is_signed:
                chain.sign()
        if draw(st.booleans()):
            chain.add(Kind.END)
        chain.sign()
        chains.append(chain)
    return chains


def _entries(chains: list[Written]) -> list[Entry]:
    return [entry for chain in chains for entry in chain.entries]


@EXAMPLES
@given(_chains())
def test_an_untouched_audit_is_clean(chains: list[Written]) -> None:
    """All of it is seen, and all of it is covered."""
    entries = _entries(chains)
    report = verified(entries)
    assert report.findings == [] and report.tails == []
    assert (report.entries, report.chains) == (len(entries), len(chains))
    assert report.since_us == NOON_US + 10**6
    assert report.checkpoints == sum(entry.kind == Kind.CHECKPOINT for entry in entries)


def _changed(entry: Entry, field: str) -> Entry:
    changes: dict[str, Any] = {
        "written_at_us": entry.written_at_us + 1,
        "kind": f"{entry.kind}x",
        "body": f"{entry.body} ",
        "digest": bytes(32),
        "writer": f"{entry.writer}x",
    }
    return msgspec.structs.replace(entry, **{field: changes[field]})


@EXAMPLES
@given(_chains(), st.data())
def test_any_edit_is_found(chains: list[Written], data: st.DataObject) -> None:
    """Of any field of any entry but a chain's last, which is a checkpoint that says nothing new."""
    entries = _entries(chains)
    place = data.draw(st.sampled_from([at for at, entry in enumerate(entries) if entry is not _last(chains, entry)]))
    field = data.draw(st.sampled_from(["written_at_us", "kind", "body", "digest", "writer"]))
    entries[place] = _changed(entries[place], field)
    assert not verified(entries).is_clean


def _last(chains: list[Written], entry: Entry) -> Entry:
    return next(chain for chain in chains if chain.writer == entry.writer).entries[-1]


@EXAMPLES
@given(_chains(), st.data())
def test_any_deletion_is_found(chains: list[Written], data: st.DataObject) -> None:
    """Of the last but one too: the checkpoint behind it covers it."""
    entries = _entries(chains)
    inner = [entry for entry in entries if entry is not _last(chains, entry)]
    entries.remove(data.draw(st.sampled_from(inner)))
    assert not verified(entries).is_clean


@EXAMPLES
@given(_chains(), st.data())
def test_any_swap_is_found(chains: list[Written], data: st.DataObject) -> None:
    """Two entries of one chain or of two change places, numbers included or not."""
    entries = _entries(chains)
    one, other = data.draw(st.lists(st.integers(0, len(entries) - 1), min_size=2, max_size=2, unique=True))
    first, second = entries[one], entries[other]
    entries[one] = msgspec.structs.replace(second, writer=first.writer, number=first.number)
    entries[other] = msgspec.structs.replace(first, writer=second.writer, number=second.number)
    assert not verified(entries).is_clean


@EXAMPLES
@given(_chains(), st.data())
def test_any_insertion_is_found(chains: list[Written], data: st.DataObject) -> None:
    """One that follows what was before it: those behind it move up, or it has a number twice."""
    chain = data.draw(st.sampled_from(chains))
    at = data.draw(st.integers(1, len(chain.entries) - 1))
    before = chain.entries[at - 1]
    added = link(before.digest, chain.writer, before.number + 1, before.written_at_us, "key.create", "{}")
    moves = data.draw(st.booleans())
    behind = [msgspec.structs.replace(it, number=it.number + moves) for it in chain.entries[at:]]
    others = [entry for other in chains if other is not chain for entry in other.entries]
    assert not verified([*others, *chain.entries[:at], added, *behind]).is_clean


@EXAMPLES
@given(_chains(), st.data())
def test_a_chain_that_was_computed_anew_is_found(chains: list[Written], data: st.DataObject) -> None:
    """Who knows how digests are made, and has no key, cannot sign what follows the change."""
    chain = data.draw(st.sampled_from(chains))
    at = data.draw(st.integers(0, len(chain.entries) - 2))
    previous = chain.entries[at - 1].digest if at else bytes(32)
    forged: list[Entry] = []
    for entry in chain.entries[at:]:
        body = entry.body if forged else entry.body + " "
        forged.append(link(previous, chain.writer, entry.number, entry.written_at_us, entry.kind, body))
        previous = forged[-1].digest
    others = [entry for other in chains if other is not chain for entry in other.entries]
    assert not verified([*others, *chain.entries[:at], *forged]).is_clean


@EXAMPLES
@given(_chains(), st.data())
def test_a_cut_is_found_by_a_checkpoint_that_was_kept(chains: list[Written], data: st.DataObject) -> None:
    """Of an end, and of a whole chain; without it nothing could tell the cut from a killed process."""
    chain = data.draw(st.sampled_from(chains))
    kept = SIGNER.sign(chain.entries[-2], NOON_US)
    left = data.draw(st.integers(0, len(chain.entries) - 2))
    others = [entry for other in chains if other is not chain for entry in other.entries]
    assert not verified([*others, *chain.entries[:left]], [kept]).is_clean
    assert verified([*others, *chain.entries], [kept]).is_clean


def test_a_killed_process_leaves_a_tail_and_no_finding() -> None:
    """The tail says that nothing covers it, and since when."""
    chain = Written()
    chain.sign()
    chain.add(Kind.CALLS)
    chain.add(Kind.CALLS)
    report = verified(chain.entries)
    assert report.is_clean
    assert [(tail.first, tail.last, tail.has_ended) for tail in report.tails] == [(3, 4, False)]


def test_another_chains_checkpoint_covers_as_well() -> None:
    """Gateways sign for commands, which may be over before anyone collects what they say."""
    command, gateway = Written("command:b"), Written("gateway:a")
    command.add("key.create")
    gateway.sign(command.entries[-1])
    gateway.sign()
    assert verified([*command.entries, *gateway.entries]).tails == []
    assert not verified([*command.entries[:-1], *gateway.entries]).is_clean
    assert not verified(gateway.entries).is_clean


def test_a_forged_checkpoint_is_found() -> None:
    """In a chain, and given: who signed it has another key."""
    chain = Written(signer=OTHER_SIGNER)
    statement = chain.sign()
    (finding,) = verified(chain.entries).findings
    assert "was not signed with a key that is trusted" in finding.sentence()
    assert not verified(Written().entries, [statement]).is_clean


def test_what_follows_an_end_is_found() -> None:
    """A process that has stopped writes nothing more but checkpoints."""
    chain = Written()
    chain.add(Kind.END)
    chain.sign()
    chain.add(Kind.CALLS)
    chain.sign()
    (finding,) = verified(chain.entries).findings
    assert "behind the chain's end" in finding.sentence()


def test_a_finding_says_which_writer_which_number_and_when() -> None:
    """One sentence, in words."""
    chain = Written()
    for _ in range(3):
        chain.add(Kind.CALLS)
    del chain.entries[2]
    (finding,) = verified(chain.entries).findings
    when = moment(chain.entries[2].written_at_us)
    assert finding.sentence() == f"Chain gateway:a, number 4 of {when}: the entry before it is missing."


def _pruned(before_us: int, *, is_signed: bool = True) -> Written:
    """A chain with the act that removed what is older."""
    chain = Written("command:p")
    chain.add("audit.prune", f'{{"by":{{}},"subject":"audit","details":{{"before_us":{before_us}}}}}')
    if is_signed:
        chain.sign()
    return chain


def test_what_was_pruned_may_be_missing() -> None:
    """A chain's beginning before a checkpoint, and a whole chain, as far as the act says."""
    chain, gone = Written(), Written("gateway:b")
    chain.add(Kind.CALLS)
    chain.sign()
    chain.add(Kind.CALLS)
    chain.sign()
    elsewhere = [SIGNER.sign(gone.entries[-1], NOON_US), SIGNER.sign(chain.entries[0], NOON_US)]
    late, early = _pruned(NOON_US + 60 * 10**6), _pruned(NOON_US)

    assert verified([*chain.entries[2:], *late.entries], elsewhere).is_clean
    assert len(verified([*chain.entries[2:], *early.entries], elsewhere).findings) == 3
    assert not verified(chain.entries[2:], elsewhere).is_clean
    assert not verified([*chain.entries[1:], *late.entries]).is_clean


def test_a_beginning_that_was_signed_anew_is_found() -> None:
    """Who has the pepper can cut a chain and sign another past for it; the checkpoint that was kept knows the first one."""
    chain = Written()
    kept = chain.sign()
    invented = msgspec.structs.replace(chain.entries[0], digest=bytes(32))
    statement = SIGNER.sign(invented, NOON_US)
    first = link(bytes(32), chain.writer, 2, NOON_US, Kind.CHECKPOINT, checkpoints.written(statement))
    act = _pruned(NOON_US + 60 * 10**6)
    assert verified([first, *act.entries]).is_clean
    assert not verified([first, *act.entries], [kept]).is_clean


def test_a_chain_in_two_places_is_found() -> None:
    """A file may have its lines in any order."""
    chain, other = Written(), Written("gateway:b")
    chain.add(Kind.CALLS)
    lines = [chain.entries[0], *other.entries, chain.entries[1]]
    found = verify(lines, [], [], [SIGNER.public_key]).findings
    assert "it stands apart from its chain" in [finding.what for finding in found]


def test_an_act_that_no_one_signed_excuses_nothing() -> None:
    """Else who cuts would write it too."""
    chain = Written()
    chain.sign()
    act = _pruned(NOON_US + 60 * 10**6, is_signed=False)
    assert not verified([*chain.entries[1:], *act.entries]).is_clean


@pytest.mark.parametrize("body", ["{}", "no json", '{"kind":"audit_checkpoint"}'])
def test_what_is_no_checkpoint_is_found(body: str) -> None:
    """An entry of that kind must hold a signed statement."""
    chain = Written()
    chain.add(Kind.CHECKPOINT, body)
    assert not verified(chain.entries).is_clean


def test_findings_are_bounded() -> None:
    """A table that was written anew is told in a page."""
    chain = Written()
    for _ in range(2_000):
        chain.add(Kind.CALLS)
    spoilt = [msgspec.structs.replace(entry, digest=bytes(32)) for entry in chain.entries]
    assert len(verified(spoilt).findings) == FINDINGS_MAX


@pytest.mark.long
@pytest.mark.parametrize(
    "rule",
    [
        test_any_edit_is_found,
        test_any_deletion_is_found,
        test_any_swap_is_found,
        test_any_insertion_is_found,
        test_a_chain_that_was_computed_anew_is_found,
        test_a_cut_is_found_by_a_checkpoint_that_was_kept,
    ],
)
def test_the_rules_hold_for_thousands(rule: Any) -> None:
    """The same, of more audits than fit into every run."""
    many = settings(deadline=None, max_examples=1500, suppress_health_check=list(HealthCheck))
    many(given(_chains(), st.data())(rule.hypothesis.inner_test))()
