"""Effort: how much a model should think, in the words of clients and in those of the models.

Clients know seven words and budgets in tokens; the models know three words. A budget is a hint here: no engine stops a
model's thinking at a number of tokens, so it chooses the effort whose usual length is nearest (GW-10).
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET

from serving.errors import InvalidRequest
from serving.gateway.dialects.checks import TemplateSwitches, TopK
from serving.gateway.dialects.dialect import Body

#: A client's word; `level` says which there are.
Effort = str
#: The models' words.
Level = Literal["low", "medium", "high"]

_LEVELS: dict[Effort, Level] = {
    "none": "low",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
#: Tokens: below Anthropic's least budget there is none.
BUDGET_MIN = 1024
#: Tokens of thinking up to which a budget means this level; those of Claude Code's "think" and "think hard".
LOW_BUDGET_MAX = 4096
MEDIUM_BUDGET_MAX = 16_384

MAPPING = "`none`, `minimal` → `low`; `xhigh`, `max` → `high`"
BUDGETS = f"up to {LOW_BUDGET_MAX} tokens → `low`, up to {MEDIUM_BUDGET_MAX} → `medium`, above → `high`"


class Wish(msgspec.Struct):
    """How much to think, as other services' APIs spell it; other keys are ignored."""

    effort: Effort | None = None
    max_tokens: TopK | None = None
    budget_tokens: TopK | None = None
    enabled: bool | None = None
    type: str | None = None

    @property
    def wanted(self) -> Effort | None:
        """The effort that it comes to, if any."""
        if self.enabled is False or self.type == "disabled":
            return "none"
        budget = self.max_tokens if self.budget_tokens is None else self.budget_tokens
        return self.effort or effort_of(-1 if budget is None else budget)


def level(effort: Effort, where: str) -> Level:
    """The model's word for a client's. Raises InvalidRequest that names all there are."""
    if effort not in _LEVELS:
        words = ", ".join(_LEVELS)
        raise InvalidRequest(f"Invalid value for '{where}': '{effort[:64]}' is none of {words}.", param=where)
    return _LEVELS[effort]


def effort_of(budget_tokens: int) -> Effort | None:
    """The effort that a budget hints at; 0 is no thinking, and -1 or less than Anthropic's least is no hint."""
    if budget_tokens == 0:
        return "none"
    if budget_tokens < BUDGET_MIN:
        return None
    return "low" if budget_tokens <= LOW_BUDGET_MAX else "medium" if budget_tokens <= MEDIUM_BUDGET_MAX else "high"


def adapt(kept: Body) -> None:
    """Put into `reasoning_effort` what a chat says about thinking, in whichever words; its own word goes first."""
    budgets = [kept.pop(name, -1) for name in ("thinking_token_budget", "thinking_budget")]
    wishes: list[Wish] = [kept.pop(name, Wish()) for name in ("reasoning", "thinking")]
    is_on: bool | None = kept.pop("enable_thinking", None)
    said: list[Effort | None] = [
        kept.get("reasoning_effort"),
        *(wish.wanted for wish in wishes),
        *map(effort_of, budgets),
    ]
    if is_on is False:
        said.append("none")
    wanted = next((word for word in said if word), None)
    if wanted:
        kept["reasoning_effort"] = level(wanted, "reasoning_effort")
    if is_on is not None or wanted == "none":
        switch(kept, bool(is_on))


def switch(kept: Body, is_on: bool) -> None:
    """Turn thinking on or off where a model's template can, unless the client's own switches say something."""
    if kept.get("chat_template_kwargs", UNSET) in (UNSET, TemplateSwitches()):
        kept["chat_template_kwargs"] = TemplateSwitches(enable_thinking=is_on, thinking=is_on)
