"""Prompts: a string, token ids, or lists of them, and how many they are."""

from __future__ import annotations

import pytest

from serving.errors import InvalidRequest
from serving.gateway.dialects.prompts import count_prompts, prompt


@pytest.mark.parametrize(
    ("value", "count"), [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2, 3]], 2), (["a"], 1), ([0], 1)]
)
def test_every_form_of_a_prompt_is_taken_and_counted(value: object, count: int) -> None:
    """A list of numbers is one prompt of that many tokens."""
    assert prompt("prompt", value) == value
    assert count_prompts(value) == count


@pytest.mark.parametrize(
    "value", ["", [], [[]], [[], [1]], ["a", 1], [1, "a"], [[1], "a"], [-1], [1.5], [True], {}, 7, [None], [["a"]]]
)
def test_what_is_no_prompt_is_refused_by_name(value: object) -> None:
    """Nothing empty, nothing mixed, no number that is no token."""
    with pytest.raises(InvalidRequest, match=r"^Invalid value for 'prompt"):
        prompt("prompt", value)
