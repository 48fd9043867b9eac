"""Tokenize: `/tokenize`, an extension of vLLM's; it computes no tokens that are billed."""

from __future__ import annotations

from serving.errors import InvalidRequest
from serving.gateway.dialects.chat import MESSAGES, recall
from serving.gateway.dialects.checks import typed
from serving.gateway.dialects.dialect import Body, Dialect
from serving.gateway.dialects.fields import Table, honoured
from serving.gateway.dialects.shapes import TokenizeAnswer
from serving.gateway.dialects.tables import CHAT_TOOLS, FLAG, MODEL, OPENAI_HINTS, OPERATORS, SAMPLING, TEMPLATE

FIELDS: Table = {
    **MODEL,
    "prompt": honoured("text", typed(str), takes_empty=True),
    "messages": honoured("1 to 4096 messages of text", MESSAGES),
    "add_special_tokens": SAMPLING["add_special_tokens"],
    "return_token_strs": honoured("true or false", FLAG),
    **OPENAI_HINTS,
    **TEMPLATE,
    **CHAT_TOOLS,
    "media_io_kwargs": OPERATORS["media_io_kwargs"],
    "mm_processor_kwargs": OPERATORS["mm_processor_kwargs"],
}


def _check(body: Body, kept: Body) -> None:
    if ("prompt" in kept) == ("messages" in kept):
        raise InvalidRequest("Give either 'prompt' or 'messages'.", param="prompt")


TOKENIZE = Dialect(
    path="/tokenize",
    summary="The tokens of a prompt or a conversation (vLLM's).",
    fields=FIELDS,
    answer=TokenizeAnswer,
    counts=None,
    check=_check,
    recall=recall,
    takes_cache_salt=False,
)
