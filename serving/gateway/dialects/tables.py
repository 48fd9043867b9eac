"""Tables: request fields that several APIs share. Each API's own table stands in its own file."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from serving.gateway.dialects import checks
from serving.gateway.dialects.checks import OfKind, typed
from serving.gateway.dialects.effort import BUDGETS, MAPPING, Effort, Wish
from serving.gateway.dialects.fields import Table, granted, honoured, ignored, refused
from serving.gateway.dialects.tools import TOOLS_NOTE, tool_list
from serving.gateway.nouns import Right

FLAG = typed(bool)
STOPS = checks.stops(checks.Stops)
OPERATOR = "It belongs to the operator."
TENANT_SALT = "The gateway sets it per tenant, so that no tenant can probe another's prefix cache."
NO_MEDIA = "The models served here read text."
DISAGGREGATION = "It steers the engine's transfer of caches between its own parts."
RENDER_ONLY = "It only applies to the engine's render routes, which are closed."
NOTHING_CACHED_BY_KEY = "Prefixes are cached by content."
NO_TIERS = "There is one service tier."
RELAXED = "without `strict`, keywords that take long to compile are left out and named in the header `x-left-out`"
A_LABEL = "A label of the client's own."
SAVES_CONTEXT = "It only saves or drops context; nothing is dropped here."
#: What happens to a call without a limit; held by tests/gateway/dialects/test_call.py.
DEFAULT_LIMIT = (
    "without it the model's `default_output_tokens` (`/v1/models/{id}` shows it), cut to what the prompt leaves of the"
    " context, and `length` says that it was reached"
)
NOT_SENT_FOR_PRIVACY = "The gateway already knows the tenant; end users' names stay out of the engine."

MODEL = {"model": honoured("name or alias of a served model", typed(checks.ModelName), is_required=True)}

#: Clients of every API send such labels; none reaches an engine, where some would steer its routing.
LABELS: Table = {
    name: ignored(A_LABEL)
    for name in ("client_metadata", "session_id", "chat_id", "conversation_id", "trace_id", "tags")
}

OPERATORS: Table = {
    "priority": refused(OPERATOR, 0),
    "cache_salt": refused(TENANT_SALT),
    "kv_transfer_params": refused(DISAGGREGATION),
    "ec_transfer_params": refused(DISAGGREGATION),
    "vllm_xargs": refused("It reaches custom code inside the engine."),
    "request_id": refused("The gateway names requests; two equal names would collide in the engine."),
    "mm_processor_kwargs": refused(NO_MEDIA),
    "media_io_kwargs": refused(NO_MEDIA),
    "mm_payload": refused(NO_MEDIA, "tensors", "none"),
    "return_mm_kwargs": refused(NO_MEDIA),
    "watermarking": refused(OPERATOR),
}

GENERATION_OPERATORS: Table = {
    **OPERATORS,
    "ignore_eos": granted(
        Right.IGNORE_EOS, "It makes the engine generate past the end of the answer, as load tests do.", FLAG
    ),
    "use_beam_search": refused("A beam holds many sequences for one answer and cannot stream."),
    "length_penalty": refused("Only beam search reads it.", 1),
    "prompt_logprobs": refused("It bypasses the prefix cache and multiplies the work of a prompt."),
    "return_token_ids": refused("It would show the tokens of the template and of hidden reasoning."),
    "return_token_offsets": refused(RENDER_ONLY),
    "routed_experts_prompt_start": refused("It is for training, not for serving.", 0),
    "logits_processors": refused("It runs code inside the engine."),
    "guided_json": refused("It was renamed: use `response_format` or `structured_outputs`."),
    "guided_regex": refused("It was renamed: use `structured_outputs`."),
    "guided_choice": refused("It was renamed: use `structured_outputs`."),
    "guided_grammar": refused("It was renamed: use `structured_outputs`."),
    "guided_decoding_backend": refused("It was renamed: use `structured_outputs`."),
    "guided_whitespace_pattern": refused("It was renamed: use `structured_outputs`."),
}

SAMPLING: Table = {
    "frequency_penalty": honoured("-2 to 2", typed(checks.Penalty)),
    "presence_penalty": honoured("-2 to 2", typed(checks.Penalty)),
    "temperature": honoured("0 to 2", typed(checks.Temperature)),
    "top_p": honoured("0 to 1", typed(Annotated[float, Meta(gt=0, le=1)])),
    "seed": honoured("a 64-bit integer", typed(checks.Seed)),
    "stop": honoured("a string, or up to 4; searched in the answer's text alone", STOPS),
    "n": honoured("1 to 8; more than 1 needs a temperature above 0", typed(checks.Choices)),
    "logit_bias": honoured("token id → -100 to 100, up to 1024", typed(checks.LogitBias)),
    "stream": honoured("true or false", FLAG),
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
    "include_stop_str_in_output": honoured("true or false", FLAG),
    "skip_special_tokens": honoured("true or false; chat and responses of gpt-oss never show them", FLAG),
    "spaces_between_special_tokens": honoured("true or false; SmolLM2's and gpt-oss's tokenizers put none", FLAG),
    "truncate_prompt_tokens": honoured(
        "-1 or more; more is refused for gpt-oss's conversations, which are not cut", typed(checks.TopK)
    ),
    "truncation_side": honoured(
        "`left` or `right`; gpt-oss's conversations are not cut", typed(Literal["left", "right"])
    ),
    "add_special_tokens": honoured("true or false; SmolLM2's and gpt-oss's tokenizers add none", FLAG),
    "response_format": honoured(
        f"`text`, `json_object` or `json_schema`; {RELAXED}", OfKind(checks.ResponseFormat, checks.response_format)
    ),
    "structured_outputs": honoured(
        "exactly one of json, regex, choice, json_object; always strict, bounded",
        OfKind(checks.StructuredOutputs, checks.structured_outputs),
    ),
    "repetition_detection": honoured("sizes up to 256", typed(checks.RepetitionDetection)),
    "return_tokens_as_token_ids": honoured("true or false", FLAG),
    "stream_interval": honoured("1 to 64 tokens a chunk", typed(Annotated[int, Meta(ge=1, le=64)])),
    "user": ignored(NOT_SENT_FOR_PRIVACY, typed(str)),
}

TEMPLATE: Table = {
    "add_generation_prompt": honoured("true or false; false is refused for gpt-oss", FLAG),
    "continue_final_message": honoured("true or false; true is refused for gpt-oss", FLAG),
    "chat_template": refused("The operator's template decides what is an instruction and what is a user's text."),
    "chat_template_kwargs": honoured(
        "`enable_thinking`, `thinking`, where the model's template has such a switch: gpt-oss and SmolLM2 have none",
        typed(checks.TemplateSwitches),
    ),
}

CHAT_TOOLS: Table = {
    "tools": honoured(
        f"up to 128; functions are the client's own; {TOOLS_NOTE}",
        OfKind(list[checks.FunctionTool], tool_list(typed(checks.FunctionTool), lambda kind: kind == "function")),
    ),
}

THINKING: Table = {
    "reasoning_effort": honoured(
        f"`low`, `medium` or `high`; {MAPPING}; models without efforts think as much as they do", typed(Effort)
    ),
    "thinking_token_budget": honoured(
        f"as `reasoning_effort`: a hint that becomes one where none is given: {BUDGETS}; -1 is none", typed(checks.TopK)
    ),
    # Other services' spellings of the same.
    "thinking_budget": honoured("as `reasoning_effort`: the same as `thinking_token_budget`", typed(checks.TopK)),
    "reasoning": honoured("as `reasoning_effort`: `effort`, `max_tokens`, `enabled`", typed(Wish)),
    "thinking": honoured("as `reasoning_effort`: `type`, `budget_tokens`", typed(Wish)),
    "enable_thinking": honoured("as `reasoning_effort`: false is an effort of `none`", FLAG),
}

OPENAI_HINTS: Table = {
    "metadata": ignored("Nothing is stored that it could label.", typed(dict)),
    "prompt_cache_key": ignored(NOTHING_CACHED_BY_KEY, typed(str)),
    "prompt_cache_retention": ignored(NOTHING_CACHED_BY_KEY, typed(str)),
    "prompt_cache_options": ignored(NOTHING_CACHED_BY_KEY, typed(dict)),
    "safety_identifier": ignored(NOT_SENT_FOR_PRIVACY, typed(str)),
    "service_tier": ignored(NO_TIERS, typed(str)),
    "moderation": refused("No moderation runs here, and its absence must not look like consent."),
    **LABELS,
}

#: What clients that also speak to other services send to them; each asks how to answer, not for another answer.
OTHER_SERVICES: Table = {
    name: ignored("Another service's hint; nothing here goes by it.")
    for name in (
        "cache_control", "keep_alive", "models", "provider", "reasoning_format", "route", "safe_prompt", "speed",
        "transforms", "usage", "vl_high_resolution_images",
    )
}  # fmt: skip
