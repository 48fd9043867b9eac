"""Fair queue: classes, then weighted tokens served, then first come; no class and no tenant starves."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.admission.fair_queue import CREDIT_CALLS, LATE_SHARE, FairQueue, Waiting, cost, urgency
from serving.gateway.policies import CLASSES, PriorityClass

INTERACTIVE, STANDARD, BATCH = CLASSES
LATE_AFTER_S = {STANDARD: 10.0, BATCH: 60.0}


def queue() -> FairQueue[str]:
    return FairQueue(LATE_AFTER_S)


def push(
    line: FairQueue[str],
    tenant: str,
    *,
    priority: PriorityClass = STANDARD,
    weight: float = 1.0,
    tokens: float = 100.0,
    now: float = 0.0,
    call: str = "",
) -> Waiting[str]:
    return line.push(call or tenant, priority, tenant, weight, tokens, now)


def pop(line: FairQueue[str], now: float = 0.0) -> str | None:
    waiting = line.pop(lambda _: True, now)
    return waiting.call if waiting else None


def test_the_class_goes_before_the_time_of_arrival() -> None:
    """Interactive calls pass standard ones, and those pass batch ones."""
    line = queue()
    for priority in (BATCH, STANDARD, INTERACTIVE):
        push(line, "a", priority=priority, call=priority)
    assert [pop(line) for _ in range(4)] == [INTERACTIVE, STANDARD, BATCH, None]


def test_a_tenants_calls_go_in_order_of_arrival() -> None:
    """Whatever they cost."""
    line = queue()
    for number, tokens in enumerate((500.0, 1.0, 50.0)):
        push(line, "a", tokens=tokens, call=str(number))
    assert [pop(line) for _ in range(3)] == ["0", "1", "2"]


def test_the_tenant_that_has_had_least_goes_first() -> None:
    """Ten calls of one that came before do not hold up the other's two: they take turns."""
    line = queue()
    for _ in range(10):
        push(line, "a")
    for _ in range(2):
        push(line, "b")
    assert "".join(pop(line) or "" for _ in range(5)) in {"abaab", "ababa", "babaa"}


def test_large_calls_count_for_what_they_are() -> None:
    """Tokens are shared, not calls: one of 300 against three of 100."""
    line = queue()
    for _ in range(20):
        push(line, "a", tokens=300)
        push(line, "b", tokens=100)
    went = Counter(pop(line) for _ in range(20))
    assert went["b"] == pytest.approx(3 * went["a"], abs=3)


def test_weights_share_tokens() -> None:
    """1:3 gives 1:3 while both wait."""
    line = queue()
    for _ in range(1200):
        push(line, "a", weight=1)
        push(line, "b", weight=3)
    went = Counter(pop(line) for _ in range(800))
    assert went["b"] / went["a"] == pytest.approx(3, rel=0.02)


def test_what_was_thought_is_corrected_by_what_it_was() -> None:
    """A tenant whose calls are longer than was thought gets fewer of them."""
    line = queue()
    for _ in range(200):
        push(line, "a", tokens=100)
        push(line, "b", tokens=100)
    went = Counter[str]()
    for _ in range(100):
        name = pop(line) or ""
        went[name] += 1
        line.served(STANDARD, name, 1.0, 200.0 if name == "a" else 0.0)
    assert went["b"] == pytest.approx(3 * went["a"], abs=3)


def test_a_tenant_that_comes_back_has_saved_up_little() -> None:
    """Counter lift: an idle hour is no claim on the next one; eight calls it may have before it takes turns."""
    line = queue()
    for _ in range(50):
        push(line, "a")
    for _ in range(30):
        pop(line)
    for _ in range(20):
        push(line, "b")
    went = "".join(pop(line) or "" for _ in range(20))
    assert went.startswith("b" * 8) and went.count("b") <= 14


def test_a_call_that_goes_at_once_counts_too() -> None:
    """What a tenant got without a wait it has had."""
    line = queue()
    line.passed(STANDARD, "b", 1.0, 0.0, 0.0)
    for _ in range(30):
        line.passed(STANDARD, "a", 1.0, 100.0, 0.0)
    push(line, "a")
    push(line, "b")
    assert pop(line) == "b"


def test_a_late_class_goes_first_at_its_time() -> None:
    """A lone batch call is passed over until it is a minute old, and by none after that."""
    line = queue()
    push(line, "b", priority=BATCH)
    for _ in range(10):
        push(line, "a", priority=INTERACTIVE)
    assert [pop(line, 59.9), pop(line, 60.0), pop(line, 60.0)] == ["a", "b", "a"]


def test_a_late_class_has_a_quarter_and_no_more() -> None:
    """A backlog of batch calls neither starves nor takes the place of people."""
    line = queue()
    for _ in range(400):
        push(line, "b", priority=BATCH)
        push(line, "a", priority=INTERACTIVE)
    went = Counter(pop(line, 100.0) for _ in range(400))
    assert went["b"] == pytest.approx(400 * LATE_SHARE, abs=2)


def test_without_room_nothing_passes_the_first() -> None:
    """Or a large call would wait until no small one comes."""
    line = queue()
    push(line, "a", tokens=1000, call="large")
    push(line, "a", tokens=1, call="small")
    assert line.pop(lambda waiting: waiting.call == "small", 0.0) is None and len(line) == 2
    assert pop(line) == "large"


def test_a_full_line_gives_way_to_tenants_that_have_less_in_it() -> None:
    """The last call of the one that has most leaves, of its lowest class; who has most gets no more."""
    line = queue()
    assert line.gives_way("a") is None
    push(line, "b", priority=INTERACTIVE)
    push(line, "b", priority=BATCH)
    for number in range(3):
        push(line, "a", call=str(number))
    push(line, "a", priority=INTERACTIVE)
    last = line.gives_way("b")
    assert last is not None and last.call == "2"
    assert line.gives_way("a") is None
    line.remove(last)
    assert len(line) == 5


def test_a_call_knows_that_it_was_overtaken() -> None:
    """And one that was not, that it was not."""
    line = queue()
    first = push(line, "a", priority=BATCH)
    second = push(line, "a", priority=INTERACTIVE)
    pop(line)
    pop(line)
    assert (first.is_overtaken, second.is_overtaken) == (True, False)


def test_a_tenant_behind_its_share_is_owed_the_next_call() -> None:
    """Not so tenants that take turns, and not one that is alone."""
    line = queue()
    alone = [push(line, "a") for _ in range(20)]
    for _ in range(10):
        pop(line)
    owed = push(line, "b")
    turns = [push(line, "b") for _ in range(8)]
    for _ in range(12):
        pop(line)
    assert owed.is_owed and not any(call.is_owed for call in alone)
    assert not turns[-1].is_owed


def test_a_tenant_that_finds_no_call_waiting_is_owed_by_what_others_have_had() -> None:
    """The others' calls are in the engines: those of one that has had less go first there. Not one that is alone, nor for ever."""
    line = queue()
    for _ in range(20):
        assert not line.is_owed(STANDARD, "a", 1.0, 100.0, now=0.0)
        line.passed(STANDARD, "a", 1.0, 100.0, now=0.0)
    owed = 0
    while line.is_owed(STANDARD, "b", 1.0, 100.0, now=0.0):
        line.passed(STANDARD, "b", 1.0, 100.0, now=0.0)
        owed += 1
    assert 0 < owed <= CREDIT_CALLS
    waiting = push(line, "c")
    pop(line)
    assert waiting.is_owed


def test_engines_get_the_order_as_a_number() -> None:
    """Lower goes first in vLLM; standard is 0, which engines take for granted; the late are before all."""
    assert [urgency(priority) for priority in CLASSES] == [-2, 0, 2]
    assert urgency(STANDARD, is_owed=True) == -1 and urgency(BATCH, is_late=True) < urgency(INTERACTIVE)


def test_when_to_come_back_follows_from_the_rate_of_service() -> None:
    """Ten calls of 100 tokens wait and 50 tokens a second are served: in 20 s. Classes behind one's own do not count."""
    line = queue()
    for second in range(60):
        line.passed(STANDARD, "a", 1.0, 50.0, float(second))
    assert line.retry_after_s(STANDARD, 60.0) == 1.0
    for _ in range(10):
        push(line, "a", now=60.0)
        push(line, "b", priority=BATCH, now=60.0)
    assert line.retry_after_s(STANDARD, 60.0) == pytest.approx(20, rel=0.1)
    assert line.retry_after_s(BATCH, 60.0) == pytest.approx(40, rel=0.1)
    assert queue().retry_after_s(BATCH, 0.0) == 1.0


def test_counters_of_tenants_that_have_gone_are_bounded() -> None:
    """Those that wait keep theirs."""
    line = FairQueue[str](LATE_AFTER_S, tenants_max=10)
    push(line, "waits")
    for number in range(100):
        line.passed(STANDARD, f"t{number}", 1.0, 1.0, 0.0)
    assert len(line._lanes[STANDARD]._had) <= 12 and pop(line) == "waits"


def test_cost_counts_output_for_more() -> None:
    """As an engine's time does."""
    assert cost(100, 10) == 140


TENANTS = st.sampled_from("abc")
CALLS = st.lists(st.tuples(TENANTS, st.floats(1, 1000)), min_size=30, max_size=120)


@given(st.dictionaries(TENANTS, st.sampled_from([0.5, 1.0, 3.0]), min_size=2), st.integers(0, 2**32))
def test_two_that_always_wait_stay_close(weights: dict[str, float], seed: int) -> None:
    """VTC's bound: what two backlogged tenants have had, over their weights, differs by two of the largest calls at most."""
    chance = random.Random(seed)
    line = queue()
    for tenant, weight in weights.items():
        for _ in range(60):
            push(line, tenant, weight=weight, tokens=chance.uniform(1, 1000))
    had = dict.fromkeys(weights, 0.0)
    for _ in range(60):
        waiting = line.pop(lambda _: True, 0.0)
        assert waiting is not None
        had[waiting.tenant] += waiting.cost / waiting.weight
        assert max(had.values()) - min(had.values()) <= 2 * 1000 / min(weights.values())


@given(CALLS, st.integers(0, 2**32))
def test_nothing_is_lost_or_served_twice(calls: list[tuple[str, float]], seed: int) -> None:
    """Calls come, go and are given up in any order: each that stayed goes once."""
    chance = random.Random(seed)
    line = queue()
    inside: dict[str, Waiting[str]] = {}
    gone = []
    for number, (tenant, tokens) in enumerate(calls):
        name = str(number)
        inside[name] = push(line, tenant, priority=chance.choice(CLASSES), tokens=tokens, now=number, call=name)
        if chance.random() < 0.3:
            line.remove(inside.pop(chance.choice(list(inside))))
        if inside and chance.random() < 0.5:
            went = pop(line, number + chance.choice([0.0, 100.0]))
            assert went is not None
            del inside[went]
            gone.append(went)
    while went := pop(line, 1e6):
        del inside[went]
        gone.append(went)
    assert not inside and len(set(gone)) == len(gone) and len(line) == 0
    assert sum(line.depths().values()) == 0


@given(st.integers(1, 20), st.integers(0, 2**32))
def test_no_class_starves(backlog: int, seed: int) -> None:
    """However many interactive calls come: once they are late, so many batch calls have gone as a quarter of the tokens is."""
    chance = random.Random(seed)
    line = queue()
    for _ in range(backlog):
        push(line, "b", priority=BATCH, tokens=100)
    now, batch = 60.0, 0
    for _ in range(8 * backlog + 8):
        push(line, chance.choice("acd"), priority=INTERACTIVE, tokens=100, now=now)
        batch += pop(line, now) == "b"
        now += 1.0
    assert batch == backlog
