"""Calls: a request body, read once. What the gateway decides on is taken out of it, what it owns is put in."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import msgspec

from serving.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.dialects import checks, constraints, fields
from serving.gateway.dialects.routes import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    RESPONSES,
    TOKENIZE,
    EngineRoute,
    StreamKind,
)

#: Objects and lists inside one another; tool schemas need about ten. The engine's parsers recurse.
NESTING_MAX = 64

#: Fields that carry schemas an engine may compile.
_SCHEMA_FIELDS = frozenset({"tools", "response_format", "structured_outputs", "text", "output_config"})


class Call(msgspec.Struct, frozen=True):
    """One checked call, ready for any replica of its model."""

    route: EngineRoute
    #: The served model's name, aliases resolved.
    model: str
    #: The body as engines get it.
    body: bytes
    is_streamed: bool
    #: The client asked for the final usage chunk.
    wants_usage: bool
    #: The client asked for usage in every chunk.
    wants_continuous_usage: bool
    #: Sequences the engine generates: prompts × n.
    sequences: int
    #: Sequences of one prompt (`n`).
    choices: int
    #: The client's own limit for one sequence, if it gave one.
    output_tokens_max: int | None


class Draft(msgspec.Struct, frozen=True):
    """A body whose fields are checked, before its model is known to exist."""

    route: EngineRoute
    requested_model: str
    kept: dict[str, Any]


def read(route: EngineRoute, raw: bytes) -> Draft:
    """Parse and check a body; raises InvalidRequest and its kinds."""
    body = _decode(raw)
    if not isinstance(body, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    kept = fields.sift(route, body)
    _RULES.get(route.path, _nothing_more)(body, kept)
    for name in _SCHEMA_FIELDS & kept.keys():
        constraints.require_cheap(name, kept[name])
    return Draft(route, kept["model"], kept)


def finish(draft: Draft, model: str, cache_salt: str) -> Call:
    """The call as it goes to an engine serving `model`."""
    kept = {**draft.kept, "model": model}
    route = draft.route
    is_streamed = route.streams is not StreamKind.NONE and kept.get("stream") is True
    asked: checks.StreamOptions = kept.pop("stream_options", checks.StreamOptions())
    if is_streamed and route.streams is StreamKind.CHUNKS:
        # Usage in every chunk: a stream that is cut is billed as of its last chunk.
        kept["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    if route is RESPONSES:
        kept["store"] = False
    if route.takes_cache_salt:
        kept["cache_salt"] = cache_salt
    choices = kept.get("n", 1)
    prompts = checks.count_prompts(kept["prompt"]) if route is COMPLETIONS else 1
    return Call(
        route=route,
        model=model,
        body=msgspec.json.encode(kept),
        is_streamed=is_streamed,
        wants_usage=asked.include_usage is True,
        # As in the engine: usage in every chunk comes only with usage at the end.
        wants_continuous_usage=asked.include_usage is True and asked.continuous_usage_stats is True,
        sequences=choices * prompts,
        choices=choices,
        output_tokens_max=_output_limit(kept),
    )


def cache_salt(key: bytes, tenant_id: str) -> str:
    """What keeps one tenant's cached prefixes apart from all others': stable, and not guessable from the tenant's id."""
    return hmac.digest(key, b"prefix-cache:" + tenant_id.encode(), "sha256").hex()


def _decode(raw: bytes) -> Any:
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("We could not parse the JSON body of your request.") from None
    except RecursionError:
        raise InvalidRequest(f"The JSON body is nested deeper than {NESTING_MAX} levels.") from None
    if raw.count(b"[") + raw.count(b"{") > NESTING_MAX and _is_deeper_than(body, NESTING_MAX):
        raise InvalidRequest(f"The JSON body is nested deeper than {NESTING_MAX} levels.")
    return body


def _is_deeper_than(body: Any, limit: int) -> bool:
    level = [body]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _output_limit(kept: dict[str, Any]) -> int | None:
    limits = [kept[name] for name in ("max_completion_tokens", "max_output_tokens", "max_tokens") if name in kept]
    return limits[0] if limits else None


# --- Rules across fields: the body as sent, the fields kept ----------------------------------------------------------


def _nothing_more(body: dict[str, Any], kept: dict[str, Any]) -> None:
    return None


def _streaming_rule(body: dict[str, Any], kept: dict[str, Any]) -> None:
    if "stream_options" in kept and kept.get("stream") is not True:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )


def _chat_rule(body: dict[str, Any], kept: dict[str, Any]) -> None:
    _streaming_rule(body, kept)
    if kept.get("top_logprobs") and not kept.get("logprobs"):
        raise InvalidRequest("'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
    choice = kept.get("tool_choice")
    if choice not in (None, "none") and "tools" not in kept:
        raise InvalidRequest("'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")


def _completions_rule(body: dict[str, Any], kept: dict[str, Any]) -> None:
    _streaming_rule(body, kept)
    sequences = checks.count_prompts(kept["prompt"]) * kept.get("n", 1)
    if sequences > checks.SEQUENCES_MAX:
        raise InvalidRequest(f"Prompts times 'n' must not exceed {checks.SEQUENCES_MAX}.", param="prompt")
    if kept.get("echo") and kept.get("logprobs"):
        raise UnsupportedParameter("Log probabilities of the prompt are not given here.", param="logprobs")


def _responses_rule(body: dict[str, Any], kept: dict[str, Any]) -> None:
    if body.get("background") is True:
        raise UnsupportedParameter(
            "Unsupported parameter: 'background'. Nothing runs in the background here.", param="background"
        )


def _embeddings_rule(body: dict[str, Any], kept: dict[str, Any]) -> None:
    if checks.count_prompts(kept["input"]) > checks.EMBEDDING_INPUTS_MAX:
        raise InvalidRequest(f"'input' must not hold more than {checks.EMBEDDING_INPUTS_MAX} texts.", param="input")


def _messages_rule(body: dict[str, Any], kept: dict[str, Any]) -> None:
    thinking = kept.get("thinking")
    if thinking is None or thinking.type != "enabled":
        return
    if thinking.budget_tokens is msgspec.UNSET:
        raise InvalidRequest("Missing required parameter: 'thinking.budget_tokens'.", param="thinking.budget_tokens")
    if thinking.budget_tokens >= kept["max_tokens"]:
        raise InvalidRequest("'thinking.budget_tokens' must be less than 'max_tokens'.", param="thinking.budget_tokens")


def _tokenize_rule(body: dict[str, Any], kept: dict[str, Any]) -> None:
    if ("prompt" in kept) == ("messages" in kept):
        raise InvalidRequest("Give either 'prompt' or 'messages'.", param="prompt")


_RULES: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    CHAT.path: _chat_rule,
    COMPLETIONS.path: _completions_rule,
    RESPONSES.path: _responses_rule,
    EMBEDDINGS.path: _embeddings_rule,
    MESSAGES.path: _messages_rule,
    TOKENIZE.path: _tokenize_rule,
}
