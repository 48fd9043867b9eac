"""Completions: `/v1/completions`, OpenAI's older API. Without `max_tokens` it generates 16 tokens, as OpenAI documents."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from serving.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.answers.chunk_answers import ChunkShaper
from serving.gateway.dialects import checks, conversation, openai
from serving.gateway.dialects.checks import OfKind, typed
from serving.gateway.dialects.dialect import Body, Dialect
from serving.gateway.dialects.fields import Table, honoured, ignored, refused
from serving.gateway.dialects.openai import ChatCounts
from serving.gateway.dialects.prompts import PROMPT, count_prompts, prompt
from serving.gateway.dialects.shapes import CompletionAnswer
from serving.gateway.dialects.tables import FLAG, GENERATION_OPERATORS, MODEL, OPENAI_HINTS, SAMPLING

#: Engines have the same default; said, it can be cut to what a caller may have.
OUTPUT_TOKENS = 16

FIELDS: Table = {
    **MODEL,
    "prompt": honoured(
        "text or token ids, one or several; with `n` at most 128", OfKind(PROMPT, prompt), is_required=True
    ),
    "max_tokens": honoured(
        f"0 or more; {OUTPUT_TOKENS} where it is not given, as at OpenAI", typed(checks.TokensOrNone)
    ),
    "logprobs": honoured("0 to 20", typed(Annotated[int, Meta(ge=0, le=20)])),
    "echo": honoured("true or false; not beside `logprobs`", FLAG),
    **SAMPLING,
    "best_of": ignored("1 is what happens anyway.", typed(Literal[1])),
    "thinking_token_budget": ignored("A hint, and this API has no effort that it could become.", typed(checks.TopK)),
    "suffix": refused("The models served here do not fill in the middle."),
    "prompt_embeds": refused("Tensors from outside are not loaded."),
    **OPENAI_HINTS,
    **GENERATION_OPERATORS,
}


def _prompts(kept: Body) -> int:
    return count_prompts(kept["prompt"])


def _check(body: Body, kept: Body) -> None:
    openai.check_streaming(body, kept)
    if _prompts(kept) * kept.get("n", 1) > checks.SEQUENCES_MAX:
        raise InvalidRequest(f"Prompts times 'n' must not exceed {checks.SEQUENCES_MAX}.", param="prompt")
    if kept.get("echo") and kept.get("logprobs") is not None:  # 0 asks the engine for the prompt's too
        raise UnsupportedParameter("Log probabilities of the prompt are not given here.", param="logprobs")


COMPLETIONS = Dialect(
    path="/v1/completions",
    summary="Go on with a text (OpenAI's completions).",
    fields=FIELDS,
    answer=CompletionAnswer,
    counts=ChatCounts,
    stream=openai.CHUNKS,
    check=_check,
    shaper=ChunkShaper,
    prompts=_prompts,
    conversation=conversation.of_prompt,
    prompt_field="prompt",
    limit_fields=("max_tokens",),
    default_limit_field="max_tokens",
    default_output_tokens=OUTPUT_TOKENS,
)
