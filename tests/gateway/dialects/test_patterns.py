"""Patterns: their repetitions are multiplied exactly, their faults are named, and reading them ends soon."""

import random
from typing import Any

import pytest

from serving.gateway.dialects.patterns import read


class Node:
    """A pattern as a tree, with its own way to say how it is written and what it repeats."""

    def __init__(self, text: str, repetition: int = 1) -> None:
        self.text, self.repetition = text, repetition


def literal(choose: random.Random) -> Node:
    return Node(
        choose.choice(["a", "Z", "9", r"\d", r"\{", r"\}", r"\\", "[{}]", r"[\]{9}]", "[^]", "[^{9}]", "}", ".", "²"])
    )


def sequence(choose: random.Random, depth: int) -> Node:
    parts = [element(choose, depth) for _ in range(choose.randint(1, 4))]
    return Node("".join(part.text for part in parts), max(part.repetition for part in parts))


def alternatives(choose: random.Random, depth: int) -> Node:
    parts = [sequence(choose, depth) for _ in range(choose.randint(1, 3))]
    return Node("|".join(part.text for part in parts), max(part.repetition for part in parts))


def element(choose: random.Random, depth: int) -> Node:
    inner = literal(choose)
    if depth and choose.random() < 0.6:
        below = alternatives(choose, depth - 1)
        inner = Node(choose.choice(["(", "(?:", "(?<n>"]) + below.text + ")", below.repetition)
    if choose.random() < 0.5:
        return inner
    low, high = sorted((choose.randint(0, 12), choose.randint(0, 12)))
    suffix, count = choose.choice(
        [("*", 1), ("+", 1), ("?", 1), (f"{{{low}}}", low), (f"{{{low},}}", low), (f"{{{low},{high}}}", high)]
    )
    return Node(inner.text + suffix + choose.choice(["", "?"]), inner.repetition * max(count, 1))


@pytest.mark.parametrize("seed", range(500))
def test_counts_are_multiplied_exactly(seed: int) -> None:
    """A count multiplies what is inside its element, and nothing beside it: as the tree says that the text is from."""
    tree = alternatives(random.Random(seed), depth=3)
    assert read(tree.text).repetition == tree.repetition, tree.text


@pytest.mark.parametrize(
    ("pattern", "repetition"),
    [
        ("(a){40}(b){40}", 40),
        ("[A-Z]{200}(x){6}", 200),
        ("a{9999999}", 9_999_999),
        ("(a{1000000,1000000}){2}", 2_000_000),
        ("a{" + "9" * 5000 + "}", 2**31),
        ("a{" + "0" * 5000 + "7}", 7),
        ("a{²}", 1),
        ("a{٣}", 1),
        (r"[\]{9}]", 1),
        (r"\{9999\}", 1),
    ],
)
def test_a_count_is_ascii_digits_of_any_length(pattern: str, repetition: int) -> None:
    """Long counts are not overlooked, and no other script's digits are taken for one."""
    assert read(pattern).repetition == repetition


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("(a", "a parenthesis that is not closed"),
        ("a)", "an unmatched ')'"),
        ("[a", "a class that is not closed"),
        ("[]a]", "an empty class"),
        ("[z-a]", "a range in a class whose end comes before its start"),
        ("a\\", "an escape that is not finished"),
        ("a{²}", "a '{' without a count"),
        ("a{3,2}", "a repetition with its counts reversed"),
        ("*a", "a repetition of nothing"),
        (r"(a)\1", "a backreference"),
        (r"\bx", "a word boundary"),
        (r"\p{L}", "a class of Unicode characters"),
        ("(?<=a)b", "a lookbehind"),
        ("(?i:a)", "a group that begins with '(?i'"),
        ("\0", "a null character"),
        ("(" * 501 + "a" + ")" * 501, "more than 500 groups inside one another"),
    ],
)
def test_faults_are_named(pattern: str, fault: str) -> None:
    """A client reads what is wrong with its pattern, alone or in a schema."""
    found = read(pattern)
    assert (found.fault, found.schema_fault) == (fault, fault)


@pytest.mark.parametrize(
    ("pattern", "fault", "schema_fault"),
    [
        ("a{1000}", None, "a repetition of more than 128"),
        ("a{128}", None, None),
        ("(?=a)b", "a lookahead", None),
        ("(?i)a", "the flag '(?i)'", None),
        ("a**", "a repetition of a repetition", None),
        ('"a{129}', None, None),
    ],
)
def test_alone_and_in_a_schema_differ(pattern: str, fault: Any, schema_fault: Any) -> None:
    """xgrammar has two readers; what one takes the other may not."""
    found = read(pattern)
    assert (found.fault, found.schema_fault) == (fault, schema_fault)


def test_wide_classes_cost_more_than_letters() -> None:
    """The more tokens of a vocabulary can begin at a character, the longer it takes to compile."""
    costs = [read(pattern).cost_ms for pattern in ("a{20}", r"\d{20}", "[a-z]{20}", "[a-z ]{20}", "[^x]{20}")]
    assert costs == sorted(costs) and costs[0] < costs[-1] / 100
