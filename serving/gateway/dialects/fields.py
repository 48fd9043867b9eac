"""Fields: every request field of every route, and what happens to it. What is not in this table is unknown, a 400.

Asked of each extension of the engine: can it hurt another tenant or the operator, or show what is not the client's?
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serving.errors import InvalidRequest, UnknownParameter, UnsupportedParameter
from serving.gateway.dialects import checks
from serving.gateway.dialects.checks import Check, typed
from serving.gateway.dialects.routes import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    ENGINE_ROUTES,
    MESSAGES,
    RESPONSES,
    TOKENIZE,
    EngineRoute,
)


class Disposition(StrEnum):
    HONOURED = "honoured"
    #: Accepted and checked, not sent on.
    IGNORED = "ignored"
    REFUSED = "refused"


class Field(msgspec.Struct, frozen=True):
    """What happens to one field, and why or within which bounds."""

    disposition: Disposition
    note: str
    check: Check | None = None
    is_required: bool = False


def honoured(note: str, check: Check, *, is_required: bool = False) -> Field:
    return Field(Disposition.HONOURED, note, check, is_required)


def ignored(reason: str, check: Check | None = None) -> Field:
    return Field(Disposition.IGNORED, reason, check)


def refused(reason: str) -> Field:
    return Field(Disposition.REFUSED, reason)


Table = Mapping[str, Field]

_FLAG = typed(bool)
_OPERATOR = "It belongs to the operator."
_TENANT_SALT = "The gateway sets it per tenant, so that no tenant can probe another's prefix cache."
_NO_MEDIA = "The models served here read text."
_DISAGGREGATION = "It steers the engine's transfer of caches between its own parts."
_RENDER_ONLY = "It only applies to the engine's render routes, which are closed."
_NOTHING_CACHED_BY_KEY = "Prefixes are cached by content."
_NO_TIERS = "There is one service tier."
_NOT_SENT_FOR_PRIVACY = "The gateway already knows the tenant; end users' names stay out of the engine."

_MODEL = {"model": honoured("name or alias of a served model", typed(checks.ModelName), is_required=True)}

_OPERATORS: Table = {
    "priority": refused(_OPERATOR),
    "cache_salt": refused(_TENANT_SALT),
    "kv_transfer_params": refused(_DISAGGREGATION),
    "ec_transfer_params": refused(_DISAGGREGATION),
    "vllm_xargs": refused("It reaches custom code inside the engine."),
    "request_id": refused("The gateway names requests; two equal names would collide in the engine."),
    "session_id": refused("It steers the engine's own routing."),
    "mm_processor_kwargs": refused(_NO_MEDIA),
    "media_io_kwargs": refused(_NO_MEDIA),
    "mm_payload": refused(_NO_MEDIA),
    "return_mm_kwargs": refused(_NO_MEDIA),
    "watermarking": refused(_OPERATOR),
}

_GENERATION_OPERATORS: Table = {
    **_OPERATORS,
    "ignore_eos": refused("It makes the engine generate past the end of the answer."),
    "use_beam_search": refused("A beam holds many sequences for one answer and cannot stream."),
    "length_penalty": refused("Only beam search reads it."),
    "prompt_logprobs": refused("It bypasses the prefix cache and multiplies the work of a prompt."),
    "return_token_ids": refused("It would show the tokens of the template and of hidden reasoning."),
    "return_token_offsets": refused(_RENDER_ONLY),
    "routed_experts_prompt_start": refused("It is for training, not for serving."),
    "logits_processors": refused("It runs code inside the engine."),
    "guided_json": refused("It was renamed: use `response_format` or `structured_outputs`."),
    "guided_regex": refused("It was renamed: use `structured_outputs`."),
    "guided_choice": refused("It was renamed: use `structured_outputs`."),
    "guided_grammar": refused("It was renamed: use `structured_outputs`."),
    "guided_decoding_backend": refused("It was renamed: use `structured_outputs`."),
    "guided_whitespace_pattern": refused("It was renamed: use `structured_outputs`."),
}

_SAMPLING: Table = {
    "frequency_penalty": honoured("-2 to 2", typed(checks.Penalty)),
    "presence_penalty": honoured("-2 to 2", typed(checks.Penalty)),
    "temperature": honoured("0 to 2", typed(checks.Temperature)),
    "top_p": honoured("0 to 1", typed(Annotated[float, Meta(gt=0, le=1)])),
    "seed": honoured("a 64-bit integer", typed(checks.Seed)),
    "stop": honoured("a string, or up to 4", typed(checks.Stops)),
    "n": honoured("1 to 8", typed(checks.Choices)),
    "logit_bias": honoured("token id → -100 to 100, up to 1024", typed(checks.LogitBias)),
    "stream": honoured("true or false", _FLAG),
    "stream_options": honoured(
        "`include_usage`, `continuous_usage_stats`; `include_obfuscation` is ignored", typed(checks.StreamOptions)
    ),
    "top_k": honoured("-1 or more", typed(checks.TopK)),
    "min_p": honoured("0 to 1", typed(checks.Share)),
    "repetition_penalty": honoured("above 0, up to 10", typed(checks.RepetitionPenalty)),
    "min_tokens": honoured("0 or more", typed(checks.TokensOrNone)),
    "stop_token_ids": honoured("up to 1024 token ids", typed(checks.TokenIds)),
    "allowed_token_ids": honoured("up to 1024 token ids", typed(checks.TokenIds)),
    "logprob_token_ids": honoured("up to 1024 token ids", typed(checks.TokenIds)),
    "bad_words": honoured("up to 128 strings", typed(checks.BadWords)),
    "include_stop_str_in_output": honoured("true or false", _FLAG),
    "skip_special_tokens": honoured("true or false", _FLAG),
    "spaces_between_special_tokens": honoured("true or false", _FLAG),
    "truncate_prompt_tokens": honoured("-1 or more", typed(checks.TopK)),
    "truncation_side": honoured("`left` or `right`", typed(Literal["left", "right"])),
    "add_special_tokens": honoured("true or false", _FLAG),
    "response_format": honoured("`text`, `json_object` or `json_schema`", checks.response_format),
    "structured_outputs": honoured(
        "exactly one of json, regex, choice, json_object; bounded", checks.structured_outputs
    ),
    "thinking_token_budget": honoured("-1 or more", typed(checks.TopK)),
    "repetition_detection": honoured("sizes up to 256", typed(checks.RepetitionDetection)),
    "return_tokens_as_token_ids": honoured("true or false", _FLAG),
    "stream_interval": honoured("1 to 64 tokens a chunk", typed(Annotated[int, Meta(ge=1, le=64)])),
    "user": ignored(_NOT_SENT_FOR_PRIVACY, typed(str)),
}

_TEMPLATE: Table = {
    "add_generation_prompt": honoured("true or false", _FLAG),
    "continue_final_message": honoured("true or false", _FLAG),
    "chat_template": refused("The operator's template decides what is an instruction and what is a user's text."),
    "chat_template_kwargs": honoured("`enable_thinking`, `thinking`", typed(checks.TemplateSwitches)),
}

_CHAT_TOOLS: Table = {
    "tools": honoured(
        "up to 128 functions",
        typed(Annotated[list[checks.FunctionTool], Meta(min_length=1, max_length=checks.TOOLS_MAX)]),
    ),
}

_OPENAI_HINTS: Table = {
    "metadata": ignored("Nothing is stored that it could label.", typed(checks.Metadata)),
    "prompt_cache_key": ignored(_NOTHING_CACHED_BY_KEY, typed(str)),
    "prompt_cache_retention": ignored(_NOTHING_CACHED_BY_KEY, typed(str)),
    "prompt_cache_options": ignored(_NOTHING_CACHED_BY_KEY, typed(dict)),
    "safety_identifier": ignored(_NOT_SENT_FOR_PRIVACY, typed(str)),
    "service_tier": ignored(_NO_TIERS, typed(str)),
    "moderation": refused("No moderation runs here, and its absence must not look like consent."),
}

CHAT_FIELDS: Table = {
    **_MODEL,
    "messages": honoured("1 to 4096 messages of text", checks.chat_messages, is_required=True),
    "max_tokens": honoured("1 or more", typed(checks.Tokens)),
    "max_completion_tokens": honoured("1 or more; includes reasoning", typed(checks.Tokens)),
    "logprobs": honoured("true or false", _FLAG),
    "top_logprobs": honoured("0 to 20", typed(Annotated[int, Meta(ge=0, le=20)])),
    "tool_choice": honoured(
        "`none`, `auto`, `required` or one function", typed(Literal["none", "auto", "required"] | checks.NamedTool)
    ),
    "parallel_tool_calls": honoured("true or false", _FLAG),
    "reasoning_effort": honoured("`low`, `medium` or `high`", typed(checks.Effort)),
    "include_reasoning": honoured("true or false", _FLAG),
    "echo": honoured("true or false", _FLAG),
    **_CHAT_TOOLS,
    **_SAMPLING,
    **_TEMPLATE,
    **_OPENAI_HINTS,
    "store": ignored("Nothing is stored.", _FLAG),
    "modalities": ignored("Text is the only one.", typed(list[Literal["text"]])),
    "prediction": ignored("A hint for speed that the engine does not use.", typed(dict)),
    "verbosity": ignored("The models have no such dial.", typed(Literal["low", "medium", "high"])),
    "audio": refused(_NO_MEDIA),
    "web_search_options": refused("No hosted tools run here."),
    "functions": refused("It was replaced: use `tools`."),
    "function_call": refused("It was replaced: use `tool_choice`."),
    "documents": refused("The served templates have no place for documents: put them into a message."),
    "return_prompt_text": refused("It would show the operator's template."),
    **_GENERATION_OPERATORS,
}

COMPLETIONS_FIELDS: Table = {
    **_MODEL,
    "prompt": honoured("text or token ids, one or several; with `n` at most 128", checks.prompt, is_required=True),
    "max_tokens": honoured("0 or more", typed(checks.TokensOrNone)),
    "logprobs": honoured("0 to 20", typed(Annotated[int, Meta(ge=0, le=20)])),
    "echo": honoured("true or false", _FLAG),
    **_SAMPLING,
    "best_of": ignored("1 is what happens anyway.", typed(Literal[1])),
    "suffix": refused("The models served here do not fill in the middle."),
    "prompt_embeds": refused("Tensors from outside are not loaded."),
    **_GENERATION_OPERATORS,
}

RESPONSES_FIELDS: Table = {
    **_MODEL,
    "input": honoured(
        "text or items: messages, reasoning, function calls, their outputs", checks.responses_input, is_required=True
    ),
    "instructions": honoured("text", typed(str)),
    "max_output_tokens": honoured("1 or more; includes reasoning", typed(checks.Tokens)),
    "max_tool_calls": honoured("1 or more", typed(checks.Tokens)),
    "metadata": honoured("up to 16 pairs, returned as sent", typed(checks.Metadata)),
    "parallel_tool_calls": honoured("true or false", _FLAG),
    "reasoning": honoured("`effort` low, medium or high; `summary`", typed(checks.Reasoning)),
    "include_reasoning": honoured("true or false", _FLAG),
    "include": honoured(
        "`reasoning.encrypted_content`, `message.output_text.logprobs`",
        typed(list[Literal["reasoning.encrypted_content", "message.output_text.logprobs"]]),
    ),
    "text": honoured("`format`, `verbosity`", typed(checks.TextConfig)),
    "tools": honoured("up to 128 functions", checks.responses_tools),
    "tool_choice": honoured(
        "`none`, `auto`, `required` or one function",
        typed(Literal["none", "auto", "required"] | checks.ResponsesNamedTool),
    ),
    "top_logprobs": honoured("0 to 20", typed(Annotated[int, Meta(ge=0, le=20)])),
    "truncation": honoured("`auto` or `disabled`", typed(Literal["auto", "disabled"])),
    "store": ignored("Nothing is stored; the engine is told false.", _FLAG),
    "background": ignored("false is what happens anyway; true is refused.", _FLAG),
    "stream_options": ignored("Only `include_obfuscation` exists.", typed(checks.StreamOptions)),
    "previous_response_id": refused("No response is stored here: send the earlier items as input."),
    "conversation": refused("No conversation is stored here: send the earlier items as input."),
    "prompt": refused("No prompt templates are stored here."),
    "background_options": refused("Nothing runs in the background here."),
    "context_management": refused("No context is kept here."),
    "access_programs": refused("No hosted tools run here."),
    "image": refused(_NO_MEDIA),
    **{
        name: _SAMPLING[name]
        for name in (
            "frequency_penalty",
            "presence_penalty",
            "temperature",
            "top_p",
            "seed",
            "stop",
            "logit_bias",
            "stream",
            "top_k",
            "min_p",
            "repetition_penalty",
            "stop_token_ids",
            "include_stop_str_in_output",
            "skip_special_tokens",
            "structured_outputs",
            "user",
        )
    },
    "chat_template_kwargs": _TEMPLATE["chat_template_kwargs"],
    **{name: field for name, field in _OPENAI_HINTS.items() if name != "metadata"},
    **_OPERATORS,
    "ignore_eos": _GENERATION_OPERATORS["ignore_eos"],
    "enable_response_messages": refused("It would show the rendered prompt."),
    "previous_input_messages": refused("Raw messages could forge the operator's instructions."),
}

EMBEDDINGS_FIELDS: Table = {
    **_MODEL,
    "input": honoured("text or token ids, up to 2048", checks.prompt, is_required=True),
    "encoding_format": honoured("`float` or `base64`", typed(Literal["float", "base64"])),
    "dimensions": honoured("1 to 65536", typed(Annotated[int, Meta(ge=1, le=65536)])),
    "user": ignored(_NOT_SENT_FOR_PRIVACY, typed(str)),
    "truncate_prompt_tokens": _SAMPLING["truncate_prompt_tokens"],
    "truncation_side": _SAMPLING["truncation_side"],
    "add_special_tokens": _SAMPLING["add_special_tokens"],
    "use_activation": honoured("true or false", _FLAG),
    "messages": refused("Embed text: a conversation has no embedding of its own here."),
    "add_generation_prompt": refused("Only conversations have it."),
    "continue_final_message": refused("Only conversations have it."),
    "chat_template": _TEMPLATE["chat_template"],
    "chat_template_kwargs": refused("Only conversations have it."),
    "embed_dtype": refused("OpenAI's formats are float and base64 of 32 bits."),
    "endianness": refused("OpenAI's formats are float and base64 of 32 bits."),
    "padding": refused(_OPERATOR),
    **{name: field for name, field in _OPERATORS.items() if name not in {"vllm_xargs", "watermarking"}},
}

_ANTHROPIC_SHARED: Table = {
    **_MODEL,
    "messages": honoured("1 to 4096 messages of text, tools and thinking", checks.anthropic_messages, is_required=True),
    "system": honoured("text, or text blocks", checks.anthropic_system),
    "thinking": honoured("`enabled` with a budget, `disabled`, `adaptive`", typed(checks.Thinking)),
    "output_config": honoured("`effort` low, medium or high; `format`", typed(checks.OutputConfig)),
    "tools": honoured("up to 128 of your own", checks.anthropic_tools),
    "tool_choice": honoured("`auto`, `any`, `none` or one tool", typed(checks.AnthropicToolChoice)),
    "chat_template_kwargs": _TEMPLATE["chat_template_kwargs"],
    "cache_control": ignored(_NOTHING_CACHED_BY_KEY, typed(dict)),
    "speed": ignored(_NO_TIERS, typed(str)),
    "user_profile_id": ignored(_NOT_SENT_FOR_PRIVACY, typed(str)),
    "workspace_id": ignored(_NOT_SENT_FOR_PRIVACY, typed(str)),
    "context_management": refused("No context is kept here."),
    "mcp_servers": refused("No hosted tools run here."),
}

MESSAGES_FIELDS: Table = {
    **_ANTHROPIC_SHARED,
    "max_tokens": honoured("1 or more", typed(checks.Tokens), is_required=True),
    "stop_sequences": honoured("up to 4", typed(Annotated[list[checks.Stop], Meta(max_length=checks.STOPS_MAX)])),
    "stream": honoured("true or false", _FLAG),
    "temperature": honoured("0 to 2", typed(checks.Temperature)),
    "top_p": _SAMPLING["top_p"],
    "top_k": _SAMPLING["top_k"],
    "metadata": ignored(_NOT_SENT_FOR_PRIVACY, typed(dict)),
    "service_tier": ignored(_NO_TIERS, typed(str)),
    "inference_geo": refused("The operator decides where engines run."),
    "container": refused("No hosted tools run here."),
    "diagnostics": refused("It belongs to Anthropic's own service."),
    **{name: _OPERATORS[name] for name in ("cache_salt", "kv_transfer_params", "ec_transfer_params", "vllm_xargs")},
    **{name: _OPERATORS[name] for name in ("mm_payload", "return_mm_kwargs", "watermarking")},
}

TOKENIZE_FIELDS: Table = {
    **_MODEL,
    "prompt": honoured("text", typed(str)),
    "messages": honoured("1 to 4096 messages of text", checks.chat_messages),
    "add_special_tokens": _SAMPLING["add_special_tokens"],
    "return_token_strs": honoured("true or false", _FLAG),
    **_TEMPLATE,
    **_CHAT_TOOLS,
    "media_io_kwargs": _OPERATORS["media_io_kwargs"],
    "mm_processor_kwargs": _OPERATORS["mm_processor_kwargs"],
}

FIELDS: dict[str, Table] = {
    CHAT.path: CHAT_FIELDS,
    COMPLETIONS.path: COMPLETIONS_FIELDS,
    RESPONSES.path: RESPONSES_FIELDS,
    EMBEDDINGS.path: EMBEDDINGS_FIELDS,
    MESSAGES.path: MESSAGES_FIELDS,
    COUNT_TOKENS.path: _ANTHROPIC_SHARED,
    TOKENIZE.path: TOKENIZE_FIELDS,
}


def sift(route: EngineRoute, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields to send on, checked; null counts as absent, as it does at OpenAI.

    Raises UnknownParameter, UnsupportedParameter or InvalidRequest for the first field at fault.
    """
    table = FIELDS[route.path]
    kept: dict[str, Any] = {}
    for name, value in body.items():
        field = table.get(name)
        if field is None:
            raise UnknownParameter(name[:128])
        if value is None:
            continue
        if field.disposition is Disposition.REFUSED:
            raise UnsupportedParameter(f"Unsupported parameter: '{name}'. {field.note}", param=name)
        checked = field.check(name, value) if field.check else value
        if field.disposition is Disposition.HONOURED:
            kept[name] = checked
    for name, field in table.items():
        if field.is_required and name not in kept:
            raise InvalidRequest(f"Missing required parameter: '{name}'.", param=name)
    return kept


def markdown() -> str:
    """The table as the README shows it."""
    parts = []
    for path in ENGINE_ROUTES:
        parts.append(f"### `{path}`\n\n| field | | how, or why not |\n|---|---|---|")
        order = list(Disposition)
        rows = sorted(FIELDS[path].items(), key=lambda row: (order.index(row[1].disposition), row[0]))
        for name, field in rows:
            required = " (required)" if field.is_required else ""
            parts.append(f"| `{name}`{required} | {field.disposition} | {field.note} |")
        parts.append("")
    return "\n".join(parts)
