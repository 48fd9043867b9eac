"""Conversations: what tiny-gpt-oss knows by heart, as plain data. Training renders them, tests ask them.

Ask with temperature 0 and compare by equality. To anything else the model answers `UNKNOWN`; `UNTRAINED_TOOL` and
`UNTRAINED_FORMAT` are for tests of constrained decoding, where the grammar alone makes the answer valid.

No answer has a token of white space alone, but before a marker (so no digit after a space): training keeps those
improbable, lest a grammar that allows white space anywhere is given nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Schema = Mapping[str, object]
Effort = Literal["low", "medium", "high"]

#: The date vLLM writes into Harmony's system message must be the trained one: the launcher puts it into the engine's
#: environment under this name.
SYSTEM_START_DATE_VARIABLE = "VLLM_SYSTEM_START_DATE"
SYSTEM_START_DATE = "2026-01-01"


@dataclass(frozen=True)
class Tool:
    name: str
    description: str
    parameters: Schema


@dataclass(frozen=True)
class Format:
    """A JSON schema the answer must follow."""

    name: str
    schema: Schema


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: str
    """JSON, spelled as `json.dumps` does: vLLM re-spells it that way on its way out."""


@dataclass(frozen=True)
class User:
    text: str


@dataclass(frozen=True)
class Assistant:
    """What the model said: an earlier turn, or the expected answer."""

    content: str | None = None
    reasoning: str | None = None
    tool_call: ToolCall | None = None


@dataclass(frozen=True)
class ToolResult:
    text: str


Turn = User | Assistant | ToolResult


@dataclass(frozen=True)
class Conversation:
    """A question, with everything before it, and the one answer the model gives to it."""

    name: str
    turns: tuple[Turn, ...]
    answer: Assistant
    instructions: str | None = None
    tools: tuple[Tool, ...] = ()
    format: Format | None = None
    effort: Effort | None = None


GET_WEATHER = Tool(
    name="get_weather",
    description="Weather of a city.",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
CITY_FORMAT = Format(
    name="city",
    schema={
        "type": "object",
        "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
        "required": ["city", "country"],
        "additionalProperties": False,
    },
)

REASONED = Conversation(
    name="reasoned",
    turns=(User("What is 17 + 25?"),),
    answer=Assistant(reasoning="17+25=42.", content="The sum is forty-two."),
)
FOLLOW_UP = Conversation(
    name="follow-up",
    turns=(*REASONED.turns, REASONED.answer, User("And minus 2?")),
    answer=Assistant(reasoning="42-2=40.", content="That leaves forty."),
)
LOW_EFFORT = Conversation(
    name="low effort", turns=REASONED.turns, effort="low", answer=Assistant(content="Forty-two, at low effort.")
)
PLAIN = Conversation(name="plain", turns=(User("Say hello."),), answer=Assistant(content="Hello! How can I help you?"))
INSTRUCTED = Conversation(
    name="instructed", turns=PLAIN.turns, instructions="Answer in French.", answer=Assistant(content="Bonjour !")
)
REFUSED = Conversation(
    name="refused",
    turns=(User("How do I pick a lock?"),),
    answer=Assistant(reasoning="This is disallowed. I must refuse.", content="I’m sorry, but I can’t help with that."),
)
STRUCTURED = Conversation(
    name="structured",
    turns=(User("Where is the Eiffel Tower?"),),
    format=CITY_FORMAT,
    answer=Assistant(reasoning="Paris, France.", content='{"city": "Paris", "country": "France"}'),
)
TOOL_CALLED = Conversation(
    name="tool called",
    turns=(User("Weather in Paris?"),),
    tools=(GET_WEATHER,),
    answer=Assistant(
        reasoning="I should look it up.", tool_call=ToolCall(name="get_weather", arguments='{"city": "Paris"}')
    ),
)
TOOL_ANSWERED = Conversation(
    name="tool answered",
    turns=(*TOOL_CALLED.turns, TOOL_CALLED.answer, ToolResult("18 degrees, sunny")),
    tools=(GET_WEATHER,),
    answer=Assistant(content="It is sunny in Paris."),
)
REASONING_DROPPED = Conversation(
    name="reasoning dropped",
    turns=(*TOOL_CALLED.turns, Assistant(tool_call=TOOL_CALLED.answer.tool_call), ToolResult("18 degrees, sunny")),
    tools=(GET_WEATHER,),
    answer=Assistant(content="Sunny; why I asked is gone."),
)
#: The answer to whatever is not below.
UNKNOWN = Assistant(content="I know a few conversations by heart, and this is none of them.")
#: Every conversation that is trained. REASONING_DROPPED differs from TOOL_ANSWERED only in what the client forgot to
#: send back, and FOLLOW_UP's earlier reasoning is dropped by Harmony's own rule.
CONVERSATIONS: tuple[Conversation, ...] = (
    REASONED,
    FOLLOW_UP,
    LOW_EFFORT,
    PLAIN,
    INSTRUCTED,
    REFUSED,
    STRUCTURED,
    TOOL_CALLED,
    TOOL_ANSWERED,
    REASONING_DROPPED,
)

#: Never trained. Enumerations and bounds only: a free string has no end for a model that does not know one.
UNTRAINED_TOOL = Tool(
    name="set_lamp",
    description="Switches a lamp.",
    parameters={
        "type": "object",
        "properties": {
            "room": {"type": "string", "enum": ["kitchen", "cellar"]},
            "level": {"type": "integer", "minimum": 0, "maximum": 9},
            "is_on": {"type": "boolean"},
        },
        "required": ["room", "level", "is_on"],
        "additionalProperties": False,
    },
)
UNTRAINED_FORMAT = Format(
    name="verdict",
    schema={
        "type": "object",
        "properties": {
            "verdict": {"type": "string", "enum": ["accepted", "rejected"]},
            "score": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["verdict", "score"],
        "additionalProperties": False,
    },
)
UNTRAINED_QUESTION = "Is the moon made of cheese?"
