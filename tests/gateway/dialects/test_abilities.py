"""Abilities: what a model cannot do is refused by name, once it is known which model is meant."""

from typing import Any

import pytest

from serving.errors import UnsupportedParameter
from serving.gateway.dialects.abilities import require
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.dialects.messages import COUNT_TOKENS, MESSAGES
from serving.gateway.dialects.responses import RESPONSES
from serving.gateway.dialects.tokenize import TOKENIZE
from serving.wire import PromptFormat
from tests.gateway.calls import draft

ASKED = {"role": "user", "content": "What is 17 + 25?"}
BEGUN = {"role": "assistant", "content": "The sum is"}


@pytest.mark.parametrize(
    ("dialect", "fields", "param"),
    [
        (CHAT, {"messages": [ASKED, BEGUN]}, "messages"),
        (
            CHAT,
            {"messages": [ASKED, BEGUN], "continue_final_message": True, "add_generation_prompt": False},
            "continue_",
        ),
        (CHAT, {"messages": [ASKED], "add_generation_prompt": False}, "add_generation_prompt"),
        (CHAT, {"messages": [ASKED], "truncate_prompt_tokens": 100}, "truncate_prompt_tokens"),
        (TOKENIZE, {"prompt": None, "messages": [ASKED, BEGUN]}, "messages"),
        (TOKENIZE, {"prompt": None, "messages": [ASKED], "add_generation_prompt": False}, "add_generation_prompt"),
        (RESPONSES, {"input": [ASKED, BEGUN]}, "input"),
        (RESPONSES, {"input": "hi", "include_reasoning": False}, "include_reasoning"),
        (RESPONSES, {"input": "hi", "top_logprobs": 2}, "top_logprobs"),
        (RESPONSES, {"input": "hi", "include": ["message.output_text.logprobs"]}, "include"),
    ],
)
def test_harmony_refuses_what_it_would_not_do(dialect: Dialect, fields: dict[str, Any], param: str) -> None:
    """A message is not continued in silence as a new one, nor a prompt left whole that was to be cut; of other models and
    unknown engines nothing is refused."""
    kept = draft(dialect, **fields).kept
    with pytest.raises(UnsupportedParameter) as refused:
        require(dialect, kept, PromptFormat.HARMONY)
    assert str(refused.value.param).startswith(param) and refused.value.message.endswith(".")
    require(dialect, kept, None)


def test_prefill_is_refused_on_messages_of_every_model() -> None:
    """vLLM closes the message there whatever the model is; counting its tokens is no answer and stays."""
    for prompt_format in (None, PromptFormat.HARMONY):
        with pytest.raises(UnsupportedParameter, match="prefill"):
            require(MESSAGES, draft(MESSAGES, messages=[ASKED, BEGUN]).kept, prompt_format)
        require(COUNT_TOKENS, draft(COUNT_TOKENS, messages=[ASKED, BEGUN]).kept, prompt_format)


@pytest.mark.parametrize("dialect", [CHAT, MESSAGES, RESPONSES])
def test_what_every_model_does_passes(dialect: Dialect) -> None:
    """A conversation that ends with its user's words."""
    fields: dict[str, Any] = {"input": [ASKED]} if dialect is RESPONSES else {"messages": [ASKED]}
    require(dialect, draft(dialect, **fields).kept, PromptFormat.HARMONY)


def test_a_cut_to_the_context_passes() -> None:
    """-1 cuts only a prompt that is too long, which Harmony's models refuse as such."""
    require(CHAT, draft(CHAT, messages=[ASKED], truncate_prompt_tokens=-1).kept, PromptFormat.HARMONY)
