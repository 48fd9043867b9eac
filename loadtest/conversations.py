"""Conversations: what a user says next. A state machine without a network: ask it, tell it the answer, ask it again."""

from __future__ import annotations

import json
import random

import msgspec

from loadtest.answers import Answer, arguments_of
from loadtest.workload import MARGIN_TOKENS, Kind, Session

#: What prompts are made of: about a token each in every vocabulary.
WORDS = ("time", "house", "water", "light", "stone", "green", "river", "table", "paper", "music", "north", "glass")
#: Words of a tool's answer, and seconds the tool takes: medians.
TOOL_WORDS = 60
TOOL_S = 0.5


def _tool(name: str, about: str, parameter: str) -> dict[str, object]:
    schema = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


TOOLS = [
    _tool("search", "Search the company's documents.", "query"),
    _tool("read_file", "Read one file of the project.", "path"),
]


class Voice(msgspec.Struct, frozen=True):
    """How all users of a run speak."""

    model: str
    embedding_model: str = ""
    #: Tokens of prompt and output together at which a conversation ends; 0 for no bound.
    context_tokens: int = 0
    #: Answers end where the model ends them, instead of at exactly the planned length.
    is_natural: bool = False
    seed: int = 0


class Request(msgspec.Struct, frozen=True):
    """One POST."""

    path: str
    body: dict[str, object]
    is_streamed: bool = True


class Conversation:
    """One session, turn by turn. The same seed and number say the same, whichever worker speaks."""

    def __init__(self, session: Session, voice: Voice) -> None:
        self._session = session
        self._voice = voice
        self._chance = random.Random(f"{voice.seed}/{session.number}")  # noqa: S311 -- Repeatable, no secret.
        self._turns_left = session.turns
        self._messages: list[dict[str, object]] = [{"role": "user", "content": self._opening()}]

    def request(self) -> Request:
        """What is asked in this turn."""
        session, voice = self._session, self._voice
        if session.kind is Kind.EMBEDDING:
            body: dict[str, object] = {"model": voice.embedding_model, "input": self._messages[0]["content"]}
            return Request("/v1/embeddings", body, is_streamed=False)
        body = {
            "model": voice.model,
            "messages": list(self._messages),
            "max_tokens": session.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if session.kind is Kind.AGENT:
            # A call of a tool ends where the model ends it.
            body |= {"tools": TOOLS}
        elif not voice.is_natural:
            body |= {"min_tokens": session.output_tokens}
        return Request("/v1/chat/completions", body)

    def take(self, answer: Answer) -> float | None:
        """Seconds until the next turn, or None when the conversation is over."""
        self._turns_left -= 1
        if self._turns_left <= 0 or not self._fits(answer):
            return None
        self._messages.append(_said(answer))
        if not answer.tool_calls:
            self._messages.append({"role": "user", "content": self._words(TOOL_WORDS)})
        for call in answer.tool_calls:
            found = json.dumps({"result": self._words(TOOL_WORDS)})
            self._messages.append({"role": "tool", "tool_call_id": call.id, "content": found})
        return TOOL_S * self._chance.lognormvariate(0, 0.5)

    def _fits(self, answer: Answer) -> bool:
        """Whether another turn stays inside the context; a session that would not is complete."""
        used = answer.usage.prompt_tokens + answer.usage.completion_tokens
        added = max(1, len(answer.tool_calls)) * TOOL_WORDS
        needed = used + added + self._session.output_tokens + MARGIN_TOKENS
        return not self._voice.context_tokens or needed <= self._voice.context_tokens

    def _opening(self) -> str:
        """No two sessions begin alike, or a prefix cache would answer instead of the model."""
        return f"{self._chance.getrandbits(32):08x} {self._words(self._session.prompt_tokens)}"

    def _words(self, count: int) -> str:
        return " ".join(self._chance.choices(WORDS, k=count))


def _said(answer: Answer) -> dict[str, object]:
    """The answer as it goes back with the next turn."""
    calls = [
        {
            "id": call.id,
            "type": "function",
            # What the model wrote may be no JSON; templates want an object.
            "function": {"name": call.name, "arguments": json.dumps(arguments_of(call))},
        }
        for call in answer.tool_calls
    ]
    message: dict[str, object] = {"role": "assistant", "content": answer.text}
    return message | {"tool_calls": calls} if calls else message
