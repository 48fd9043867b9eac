"""Embeddings: `/v1/embeddings`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from serving.errors import InvalidRequest
from serving.gateway.answers.embedding_answers import EmbeddingShaper
from serving.gateway.dialects import checks
from serving.gateway.dialects.checks import OfKind, typed
from serving.gateway.dialects.dialect import Body, Dialect
from serving.gateway.dialects.fields import Table, honoured, ignored, refused
from serving.gateway.dialects.openai import ChatCounts
from serving.gateway.dialects.prompts import PROMPT, count_prompts, prompt
from serving.gateway.dialects.shapes import EmbeddingsAnswer
from serving.gateway.dialects.tables import (
    FLAG,
    MODEL,
    NOT_SENT_FOR_PRIVACY,
    OPENAI_HINTS,
    OPERATOR,
    OPERATORS,
    SAMPLING,
    TEMPLATE,
)

FIELDS: Table = {
    **MODEL,
    "input": honoured("text or token ids, up to 2048", OfKind(PROMPT, prompt), is_required=True),
    "encoding_format": honoured("`float` or `base64`", typed(Literal["float", "base64"])),
    "dimensions": honoured(
        "1 to 65536; refused for models of one size, such as all-minilm-l6-v2",
        typed(Annotated[int, Meta(ge=1, le=65536)]),
    ),
    "user": ignored(NOT_SENT_FOR_PRIVACY, typed(str)),
    "truncate_prompt_tokens": SAMPLING["truncate_prompt_tokens"],
    "truncation_side": SAMPLING["truncation_side"],
    "add_special_tokens": SAMPLING["add_special_tokens"],
    "use_activation": honoured("true or false", FLAG),
    "messages": refused("Embed text: a conversation has no embedding of its own here."),
    "add_generation_prompt": refused("Only conversations have it."),
    "continue_final_message": refused("Only conversations have it."),
    "chat_template": TEMPLATE["chat_template"],
    "chat_template_kwargs": refused("Only conversations have it."),
    "embed_dtype": refused("OpenAI's formats are float and base64 of 32 bits."),
    "endianness": refused("OpenAI's formats are float and base64 of 32 bits."),
    "padding": refused(OPERATOR),
    **OPENAI_HINTS,
    **{name: field for name, field in OPERATORS.items() if name not in {"vllm_xargs", "watermarking"}},
}


def _check(body: Body, kept: Body) -> None:
    if count_prompts(kept["input"]) > checks.EMBEDDING_INPUTS_MAX:
        raise InvalidRequest(f"'input' must not hold more than {checks.EMBEDDING_INPUTS_MAX} texts.", param="input")


EMBEDDINGS = Dialect(
    path="/v1/embeddings",
    summary="Make texts into vectors (OpenAI's embeddings).",
    fields=FIELDS,
    answer=EmbeddingsAnswer,
    counts=ChatCounts,
    check=_check,
    shaper=EmbeddingShaper,
    prompt_field="input",
)
