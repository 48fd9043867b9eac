"""Harmony: four methods of vLLM 0.32 replaced, in the API servers of models that speak it (ENG-40, ENG-41).

* An answer that ends inside a message's header is no answer. vLLM hands that header's tokens to the client as content.
* A message to a tool that was not offered, or in a channel that Harmony does not have, is text. vLLM drops it on one route
  and fails or invents a call on another.
* `/tokenize` of messages shows the prompt that chat would use. vLLM renders the Hugging Face template there, which chat
  does not.

They are described for vLLM in `serving/decisions/upstream.md`; `tests/engine/test_harmony.py` fails where they change.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

#: Fields of a tokenize request that chat understands.
_OF_CHAT = ("model", "messages", "tools", "chat_template_kwargs")
_FINAL = "final"
_CHANNELS = ("analysis", "commentary", _FINAL)


def install() -> None:
    """Replace the methods in this process. vLLM is imported here: only engines have it."""
    from vllm.parser.harmony import HarmonyParser
    from vllm.renderers.online_renderer import OnlineRenderer

    HarmonyParser.flush = in_known_channels(without_headers(HarmonyParser.flush))
    HarmonyParser.process_chunk = in_known_channels(HarmonyParser.process_chunk)
    HarmonyParser._normalize_recipient = only_offered(HarmonyParser._normalize_recipient)
    OnlineRenderer.preprocess_chat = as_chat_renders(OnlineRenderer.preprocess_chat)


def without_headers(flush: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    """A `HarmonyParser.flush` that does not take a header for content.

    Output without any of Harmony's control tokens stays content: a model may never have begun a header.
    """

    @wraps(flush)
    def flush_without_headers(parser: Any) -> list[Any]:
        from vllm.entrypoints.openai.parser.harmony_utils import get_encoding

        is_control = get_encoding().is_special_token
        has_control = any(map(is_control, parser._current_message_tokens))
        segments = flush(parser)
        # A first segment without its message is vLLM's recovery; what it recovered has never come to a body.
        is_recovered = bool(segments) and segments[0].completed_message is None
        return [] if is_recovered and has_control else segments

    return flush_without_headers


def in_known_channels(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of `HarmonyParser` whose segments are in Harmony's channels: what is in none of them is an answer's text."""

    def known(segment: Any) -> Any:
        message = segment.completed_message
        if message is not None and message.channel not in _CHANNELS:
            message.channel = _FINAL
        return segment if segment.channel in _CHANNELS else segment._replace(channel=_FINAL)

    @wraps(method)
    def in_channels(parser: Any, *args: Any) -> Any:
        found = method(parser, *args)
        segments = found if isinstance(found, list) else found.segments
        segments[:] = map(known, segments)
        return found

    return in_channels


def only_offered(normalize: Callable[[str | None], str | None]) -> Callable[[Any, str | None], str | None]:
    """A `HarmonyParser._normalize_recipient` that knows no recipients but the request's tools."""

    @wraps(normalize)
    def normalize_offered(parser: Any, recipient: str | None) -> str | None:
        recipient = normalize(recipient)
        if recipient is None:
            return None
        tools = (parser._tool_parser and parser._tool_parser.tools) or ()
        offered = {getattr(getattr(tool, "function", tool), "name", None) for tool in tools}
        return recipient if recipient.removeprefix("functions.") in offered else None

    return normalize_offered


def as_chat_renders(preprocess_chat: Callable[..., Any]) -> Callable[..., Any]:
    """An `OnlineRenderer.preprocess_chat` that renders a tokenize request as the chat request that it stands for."""

    @wraps(preprocess_chat)
    async def preprocess_as_chat(renderer: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse
        from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest
        from vllm.exceptions import VLLMValidationError

        if not (renderer.use_harmony and isinstance(request, TokenizeChatRequest)):
            return await preprocess_chat(renderer, request, *args, **kwargs)
        asked = request.model_dump(include=set(_OF_CHAT), exclude_none=True)
        rendered = await renderer.render_chat(ChatCompletionRequest.model_validate(asked), skip_mm_cache=True)
        if isinstance(rendered, ErrorResponse):
            raise VLLMValidationError(rendered.error.message, parameter=rendered.error.param)
        return rendered

    return preprocess_as_chat
