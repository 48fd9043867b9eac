"""Effort: seven words and budgets in, three words out."""

from __future__ import annotations

import typing

import pytest

from serving.errors import InvalidRequest
from serving.gateway.dialects import effort
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.checks import TemplateSwitches
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.dialects.effort import Level, Wish
from serving.gateway.dialects.messages import MESSAGES
from serving.gateway.dialects.responses import RESPONSES
from tests.gateway.calls import draft

WORDS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def test_every_word_of_clients_is_one_of_the_models() -> None:
    """None and minimal are low, what is above high is high."""
    said = [effort.level(word, "e") for word in WORDS]
    assert said == ["low", "low", "low", "medium", "high", "high", "high"] and set(said) == set(typing.get_args(Level))


@pytest.mark.parametrize(
    ("budget", "word"),
    [(-1, None), (0, "none"), (1, None), (1023, None), (1024, "low"), (4096, "low"), (4097, "medium"), (16385, "high")],
)
def test_a_budget_hints_at_an_effort(budget: int, word: str | None) -> None:
    """Below Anthropic's least there is no hint."""
    assert effort.effort_of(budget) == word


@pytest.mark.parametrize(
    ("wish", "word"),
    [
        (Wish(), None),
        (Wish(effort="xhigh"), "xhigh"),
        (Wish(enabled=False, effort="high"), "none"),
        (Wish(type="disabled"), "none"),
        (Wish(type="enabled", budget_tokens=20_000), "high"),
        (Wish(max_tokens=2000), "low"),
    ],
)
def test_other_services_words_come_to_the_same(wish: Wish, word: str | None) -> None:
    """Off goes before how much."""
    assert wish.wanted == word


def test_a_clients_own_switches_stay() -> None:
    """What it says itself about its model's template."""
    own = {"chat_template_kwargs": TemplateSwitches(thinking=True)}
    effort.switch(own, False)
    assert own["chat_template_kwargs"].thinking is True
    none: dict[str, TemplateSwitches] = {}
    effort.switch(none, False)
    assert none["chat_template_kwargs"] == TemplateSwitches(enable_thinking=False, thinking=False)


def test_another_word_is_refused_with_all_there_are() -> None:
    """In every API, at its own place."""
    asked: list[tuple[Dialect, dict[str, object], str]] = [
        (CHAT, {"reasoning_effort": "very"}, "reasoning_effort"),
        (RESPONSES, {"reasoning": {"effort": "very"}}, "reasoning.effort"),
        (MESSAGES, {"output_config": {"effort": "very"}}, "output_config.effort"),
    ]
    for dialect, fields, place in asked:
        with pytest.raises(InvalidRequest) as refused:
            draft(dialect, **fields)
        assert refused.value.param == place and all(word in refused.value.message for word in WORDS)
