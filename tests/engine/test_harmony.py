"""Harmony as vLLM's own classes speak it, with our two methods in them: no header becomes content."""

from __future__ import annotations

from typing import Any

import pytest

from serving.engine.harmony import in_known_channels, only_offered, without_headers

HEADERS = ["<|channel|>final", "<|channel|>commentary to=functions.get_weather", "<|channel|>analysis"]
ARGUMENTS = '{"city": "Paris"}'
ANSWER = "<|channel|>analysis<|message|>Thinking.<|end|><|start|>assistant<|channel|>final<|message|>Done."


class Parser:
    """vLLM's parser with the replaced method, and what a client would get of an answer."""

    def __init__(self) -> None:
        from openai_harmony import HarmonyEncodingName, load_harmony_encoding
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.parser.harmony import HarmonyParser
        from vllm.reasoning.gptoss_reasoning_parser import GptOssReasoningParser
        from vllm.tool_parsers.gptoss_tool_parser import GptOssToolParser

        encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)

        self._encoding = encoding
        members: dict[str, Any] = {"reasoning_parser_cls": GptOssReasoningParser, "tool_parser_cls": GptOssToolParser}
        members["flush"] = in_known_channels(without_headers(HarmonyParser.flush))
        members["process_chunk"] = in_known_channels(HarmonyParser.process_chunk)
        members["_normalize_recipient"] = only_offered(HarmonyParser._normalize_recipient)
        self._make: Any = type("Replaced", (HarmonyParser,), members)
        tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
        self.request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "hi"}], tools=[tool])

    def made(self) -> Any:
        return self._make(_Tokenizer(self._encoding), self.request.tools)

    def tokens(self, text: str, *, has_control: bool = True) -> list[int]:
        return list(self._encoding.encode(text, allowed_special="all" if has_control else set(), disallowed_special=()))

    def whole(self, tokens: list[int]) -> tuple[Any, ...]:
        reasoning, content, calls = self.made().parse("", self.request, model_output_token_ids=tokens)
        return reasoning, content, calls

    def streamed(self, tokens: list[int]) -> tuple[str, str, int]:
        parser, reasoning, content, calls = self.made(), "", "", 0
        for at, token in enumerate(tokens, start=1):
            delta = parser.parse_delta("", [token], self.request, finished=at == len(tokens))
            if delta is not None:
                reasoning, content = reasoning + (delta.reasoning or ""), content + (delta.content or "")
                calls += len(delta.tool_calls or [])
        return reasoning, content, calls


class _Tokenizer:
    """As much of a tokenizer as the parser asks for."""

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding

    def decode(self, tokens: list[int]) -> str:
        return str(self._encoding.decode(tokens))

    def get_vocab(self) -> dict[str, int]:
        return {text: self._encoding.encode(text, allowed_special="all")[0] for text in ("<|channel|>", "<|start|>")}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@pytest.fixture(scope="module")
def parser() -> Parser:
    """Imported late: only engines have vLLM."""
    return Parser()


@pytest.mark.parametrize("header", HEADERS)
def test_an_answer_cut_in_a_header_has_no_content(parser: Parser, header: str) -> None:
    """The first message's header, or a later one's; whole and streamed alike."""
    assert parser.whole(parser.tokens(header)) == (None, None, None)
    assert parser.streamed(parser.tokens(header)) == ("", "", 0)
    later = parser.tokens(f"<|channel|>analysis<|message|>Thinking.<|end|><|start|>assistant{header}")
    assert parser.whole(later) == ("Thinking.", None, None)
    assert parser.streamed(later) == ("Thinking.", "", 0)


def test_whole_messages_stay(parser: Parser) -> None:
    """What came to its body is an answer, whether its end was generated or not."""
    for end in ("", "<|return|>", "<|end|>"):
        assert parser.whole(parser.tokens(ANSWER + end)) == ("Thinking.", "Done.", None)
        assert parser.streamed(parser.tokens(ANSWER + end)) == ("Thinking.", "Done.", 0)


def test_a_spelled_marker_stays(parser: Parser) -> None:
    """Text that merely looks like a marker is text: it came from other tokens."""
    spelled = "Write <|start|>assistant<|end|> yourself."
    tokens = parser.tokens("<|channel|>final<|message|>") + parser.tokens(spelled, has_control=False)
    assert parser.whole(tokens) == (None, spelled, None)
    assert parser.streamed(tokens) == ("", spelled, 0)


def test_a_call_of_an_offered_tool_is_one(parser: Parser) -> None:
    """By its full name, or without the namespace."""
    for name in ("functions.get_weather", "get_weather"):
        tokens = parser.tokens(f"<|channel|>commentary to={name} <|constrain|>json<|message|>{ARGUMENTS}<|call|>")
        reasoning, content, (one,) = parser.whole(tokens)
        assert (reasoning, content, one.name, one.arguments) == (None, None, "get_weather", ARGUMENTS)
        assert parser.streamed(tokens)[2] >= 1


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.nope <|constrain|>json",
        "<|channel|>commentary to=browser.search",
        "<|channel|>commentary to=browser.dance",
        "<|channel|>commentary to=repo_browser.open",
        "<|channel|>comment",
        "",
    ],
)
def test_a_message_that_goes_nowhere_is_text(parser: Parser, header: str) -> None:
    """To a tool that was not offered, or in no channel: the same whole and streamed, and never an empty answer."""
    tokens = parser.tokens(f"{header}<|message|>{ARGUMENTS}<|call|>")
    assert parser.whole(tokens) == (None, ARGUMENTS, None)
    assert parser.streamed(tokens) == ("", ARGUMENTS, 0)


def test_output_that_never_was_harmony_stays(parser: Parser) -> None:
    """Without a single control token it is all that there is."""
    tokens = parser.tokens("Plain words.", has_control=False)
    assert parser.whole(tokens) == (None, "Plain words.", None)
