"""Models share GPUs by priority: minimums first, engines whole, and whoever gets less is told why."""

from __future__ import annotations

import time
from random import Random

import pytest

from serving.engine.pool import Grant, Node, Wish, granted, waiting_reason


def nodes(count: int, gpus: int = 8, gpu_type: str = "H100") -> list[Node]:
    return [Node(f"{gpu_type.lower()}-{index}", gpus, gpu_type) for index in range(count)]


def wish(
    model: str,
    wanted: int,
    gpus: int,
    *,
    priority: int = 0,
    least: int = 0,
    over: int = 1,
    gpu_type: str | None = "H100",
) -> Wish:
    return Wish(model, priority, least, wanted, gpus, over, gpu_type)


def replicas(grants: dict[str, Grant]) -> dict[str, int]:
    return {model: grant.replicas for model, grant in grants.items()}


def test_who_fits_gets_all_and_no_sentence() -> None:
    """Enough for everybody: nothing is explained."""
    assert granted(nodes(2), [wish("a", 2, 4), wish("b", 1, 8)]) == {"a": Grant(2), "b": Grant(1)}


def test_minimums_come_before_the_wishes_of_higher_priorities() -> None:
    """A model of low priority keeps its minimum; of what is left the highest priority takes first."""
    low, high = wish("low", 4, 2, least=1), wish("high", 4, 2, priority=9, least=1)
    grants = granted(nodes(1), [low, high])
    assert replicas(grants) == {"high": 3, "low": 1}
    assert grants["high"].reason is not None and grants["high"].reason.endswith("other models hold them: low")
    assert grants["low"].reason == (
        "1 of 4 engines granted: no node has 2 free GPUs of type H100 (the freest has 0);"
        " models of higher priority hold them: high"
    )


def test_minimums_that_do_not_fit_go_by_priority_then_name() -> None:
    """The higher priority first; among equals of one size the name decides, so that every answer is the same."""
    wishes = [wish("b", 1, 4, least=1), wish("a", 1, 4, least=1), wish("first", 1, 4, least=1, priority=1)]
    assert replicas(granted(nodes(1), wishes)) == {"first": 1, "a": 1, "b": 0}
    assert replicas(granted(nodes(1), wishes[::-1])) == {"first": 1, "a": 1, "b": 0}


def test_larger_engines_are_placed_before_smaller_of_the_same_priority() -> None:
    """Small engines fill what is left; placed first, they would leave no whole node."""
    grants = granted(nodes(2), [wish("a-small", 8, 2), wish("large", 1, 8)])
    assert replicas(grants) == {"large": 1, "a-small": 4}


def test_engines_fill_the_fullest_node_that_has_room() -> None:
    """Best fit: two small engines share the small node, so the large node stays whole for a large one."""
    pool = [*nodes(1), Node("odd", 4, "H100")]
    grants = granted(pool, [wish("small", 2, 2, priority=1), wish("large", 1, 8)])
    assert replicas(grants) == {"small": 2, "large": 1}


@pytest.mark.parametrize(
    ("pool", "asked", "sentence"),
    [
        (nodes(1), wish("m", 3, 4), "2 of 3 engines granted: no node has 4 free GPUs of type H100 (the freest has 0)"),
        (nodes(3, 4), wish("m", 1, 8), "0 of 1 engine granted: no node has 8 GPUs of type H100 (the largest has 4)"),
        (nodes(3, 8, "H200"), wish("m", 1, 1), "0 of 1 engine granted: no node has GPUs of type H100"),
        ([], wish("m", 1, 1, gpu_type=None), "0 of 1 engine granted: no node has GPUs"),
        (
            nodes(3),
            wish("m", 2, 8, over=2),
            "1 of 2 engines granted: an engine takes 2 nodes with 8 free GPUs of type H100 each, and there are 1 (the freest has 8)",
        ),
    ],
)
def test_who_gets_less_is_told_why(pool: list[Node], asked: Wish, sentence: str) -> None:
    """Too little free, too small a node, another type, too few nodes: each is its own sentence."""
    assert granted(pool, [asked])["m"].reason == sentence


def test_a_model_that_does_not_fit_leaves_its_room_to_the_next() -> None:
    """An engine that waits for a whole node must not keep half of one empty."""
    grants = granted(nodes(1, 4), [wish("large", 1, 8, priority=9), wish("small", 2, 2)])
    assert replicas(grants) == {"large": 0, "small": 2}


def test_types_are_kept_apart_and_any_means_any() -> None:
    """An engine lands on its own type only; one without a type takes what there is."""
    pool = [*nodes(1, 8, "H100"), *nodes(1, 8, "H200")]
    assert replicas(granted(pool, [wish("m", 3, 8)])) == {"m": 1}
    assert replicas(granted(pool, [wish("m", 3, 8, gpu_type=None)])) == {"m": 2}


def test_engines_on_the_cpu_are_not_limited() -> None:
    """They hold no GPU, so no pool of GPUs caps them; a minimum above the wish counts."""
    assert granted([], [wish("cpu", 5, 0), wish("least", 1, 0, least=2)]) == {"cpu": Grant(5), "least": Grant(2)}


def test_no_more_is_granted_than_there_is() -> None:
    """Whatever is asked, the engines granted fit the GPUs of their type, and nobody gets more than was asked."""
    random = Random(5)
    for _ in range(200):
        pool = [*nodes(random.randint(0, 4), random.choice((4, 8))), *nodes(random.randint(0, 3), 8, "H200")]
        wishes = [
            wish(
                f"m{index}",
                random.randint(0, 6),
                random.choice((0, 1, 2, 4, 8)),
                priority=random.randint(0, 2),
                least=random.randint(0, 2),
                over=random.choice((1, 1, 2)),
                gpu_type=random.choice(("H100", "H200")),
            )
            for index in range(5)
        ]
        grants = granted(pool, wishes)
        for gpu_type in ("H100", "H200"):
            used = sum(
                grants[it.model].replicas * it.gpus_per_node * it.nodes for it in wishes if it.gpu_type == gpu_type
            )
            assert used <= sum(node.gpus_total for node in pool if node.gpu_type == gpu_type)
        for it in wishes:
            grant = grants[it.model]
            assert 0 <= grant.replicas <= it.engines and (grant.reason is None) == (grant.replicas == it.engines)


def test_a_large_pool_and_an_endless_wish_are_decided_at_once() -> None:
    """Hundreds of nodes, and a wish without sense, cost well under the second between two decisions."""
    wishes = [wish(f"m{index}", 10**9, 1 + index % 8, priority=index % 3, least=2) for index in range(20)]
    began = time.process_time()
    grants = granted(nodes(400), wishes)
    assert time.process_time() - began < 5
    assert sum(grant.replicas for grant in grants.values()) <= 3200


@pytest.mark.parametrize(
    ("free", "asked", "sentence"),
    [
        (
            {"a": 6, "b": 4},
            wish("m", 1, 8),
            "waits for a node with 8 free H100s; the freest has 6: move or stop smaller engines there",
        ),
        (
            {"a": 3, "b": 1},
            wish("m", 1, 8),
            "waits for a node with 8 free H100s; the freest has 3, all together 4: other engines must stop first",
        ),
        (
            {"a": 8, "b": 7, "c": 7},
            wish("m", 1, 8, over=2),
            "waits for 2 nodes with 8 free H100s; the freest has 8: move or stop smaller engines there",
        ),
        ({"a": 8}, wish("m", 1, 8, over=2), "waits for 2 nodes with 8 free H100s; there is 1"),
        ({}, wish("m", 1, 1), "waits for a node with 1 free H100; there are none"),
        ({"a": 8}, wish("m", 1, 8, gpu_type=None), "waits for its turn: there is room for it"),
    ],
)
def test_an_engine_without_a_place_says_what_it_waits_for(free: dict[str, int], asked: Wish, sentence: str) -> None:
    """Scattered GPUs, too few of them, too few nodes or nothing but time: the operator can tell which."""
    assert waiting_reason(free, asked) == sentence
