"""Who comes with how much, and what he says next."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest

from loadtest.answers import Answer, ToolCall, Usage
from loadtest.conversations import TOOLS, Conversation, Voice
from loadtest.planning import Wish, plan
from loadtest.scaling.traces import TracedCall
from loadtest.workload import SIZES, Kind, Limits, Session, cut, read_mix, replayed, sessions
from serving.errors import Refusal

VOICE = Voice("big", "small")


def drawn(mix: str = "chat=6,agent=1,document=2,embedding=1", limits: Limits | None = None) -> list[Session]:
    instants = [float(at) for at in range(2000)]
    return sessions(instants, read_mix(mix), limits or Limits(), random.Random(1))


def test_users_come_as_the_mix_has_them() -> None:
    """Within four standard deviations of their weights, and a weight of 0 brings nobody."""
    counts = Counter(it.kind for it in drawn("chat=6,agent=1,document=3,embedding=0"))
    for kind, share in ((Kind.CHAT, 0.6), (Kind.AGENT, 0.1), (Kind.DOCUMENT, 0.3)):
        assert abs(counts[kind] - 2000 * share) < 4 * (2000 * share) ** 0.5
    assert Kind.EMBEDDING not in counts


def test_sizes_lie_about_their_medians() -> None:
    """Half above and half below; embeddings have no output, and only agents have several turns."""
    for kind in Kind:
        them = [it for it in drawn() if it.kind is kind]
        above = sum(it.prompt_tokens > SIZES[kind].prompt_tokens for it in them)
        assert abs(above - len(them) / 2) < 4 * len(them) ** 0.5
        assert {it.turns for it in them} == {SIZES[kind].turns}
        assert (min(it.output_tokens for it in them) > 0) is (kind is not Kind.EMBEDDING)


@pytest.mark.parametrize("context", [256, 4096])
def test_nobody_asks_for_more_than_the_model_takes(context: int) -> None:
    """Prompt and output stay under the context, a document's and a trace's too; what was cut is counted."""
    limits = Limits(context, context)
    assert all(it.prompt_tokens > 0 and it.prompt_tokens + it.output_tokens < context for it in drawn(limits=limits))
    calls = [TracedCall(0.0, 100_000, 50_000), TracedCall(1.0, 20, 10)]
    made = replayed(calls, limits)
    assert all(it.prompt_tokens + it.output_tokens < context for it in made)
    assert (made[1].prompt_tokens, made[1].output_tokens) == (20, 10)
    assert cut(made, calls, 1.0) == 1


@pytest.mark.parametrize("text", ["", "chatter=1", "chat=much", "chat=-1", "chat=0", "chat=nan", "chat=1,,agent=1"])
def test_what_is_no_mix_is_refused(text: str) -> None:
    with pytest.raises(Refusal):
        read_mix(text)


@pytest.mark.parametrize(
    "wish",
    [
        Wish("steady", 10.0),
        Wish("replay", 10.0),
        Wish("steady", 1e-9, rate_per_s=1.0),
        Wish("steady", 1e9, rate_per_s=1e9),
    ],
)
def test_a_plan_without_sessions_or_without_end_is_refused(wish: Wish) -> None:
    with pytest.raises(Refusal):
        plan(wish, {Kind.CHAT: 1.0}, Limits())


def test_lengths_are_as_planned_unless_they_shall_be_natural() -> None:
    """`min_tokens` holds the model to the planned output; agents and natural users leave the end to the model."""
    session = Session(1, 0.0, Kind.CHAT, 20, 10)
    exact = Conversation(session, VOICE).request().body
    assert (exact["min_tokens"], exact["max_tokens"], exact["stream"]) == (10, 10, True)
    natural = Conversation(session, msgspec.structs.replace(VOICE, is_natural=True)).request().body
    assert "min_tokens" not in natural and natural["max_tokens"] == 10
    agent = Conversation(Session(1, 0.0, Kind.AGENT, 20, 10, turns=3), VOICE).request().body
    assert "min_tokens" not in agent and agent["tools"] == TOOLS


def test_an_embedding_asks_its_own_model_for_the_whole() -> None:
    request = Conversation(Session(1, 0.0, Kind.EMBEDDING, 20, 0), VOICE).request()
    assert (request.path, request.is_streamed, request.body["model"]) == ("/v1/embeddings", False, "small")


def test_an_agent_goes_on_with_what_its_tools_said() -> None:
    """The conversation grows: the model's call, the tool's answer with its id, and after the last turn nothing."""
    agent = Conversation(Session(1, 0.0, Kind.AGENT, 20, 10, turns=3), VOICE)
    opening = messages(agent)
    called = Answer(tool_calls=[ToolCall("call-1", "search", '{"query": "x"}')])
    assert (pause_s := agent.take(called)) is not None and pause_s > 0
    said = messages(agent)
    assert said[: len(opening)] == opening
    assert [it["role"] for it in said] == ["user", "assistant", "tool"]
    assert said[2]["tool_call_id"] == "call-1"
    assert agent.take(Answer(text="Well.")) is not None
    assert [it["role"] for it in messages(agent)][3:] == ["assistant", "user"]
    assert agent.take(Answer(text="Done.")) is None


def test_arguments_that_are_no_object_go_back_as_an_empty_one() -> None:
    """A small model writes anything; the next turn must be a request that a template can render all the same."""
    agent = Conversation(Session(1, 0.0, Kind.AGENT, 20, 10, turns=2), VOICE)
    agent.take(Answer(tool_calls=[ToolCall("call-1", "search", '{"query": "x')]))
    assert '"arguments": "{}"' in str(messages(agent)[1]).replace("'", '"')


def test_an_agent_ends_before_its_context_does() -> None:
    agent = Conversation(
        Session(1, 0.0, Kind.AGENT, 20, 10, turns=9), msgspec.structs.replace(VOICE, context_tokens=2048)
    )
    assert agent.take(Answer(usage=Usage(1000, 10))) is not None
    assert agent.take(Answer(usage=Usage(1900, 10))) is None


def test_no_two_sessions_begin_alike_and_each_says_the_same_again() -> None:
    """A shared beginning would be answered from the prefix cache; another worker must not say something else."""
    openings = [str(messages(Conversation(Session(n, 0.0, Kind.CHAT, 50, 5), VOICE))[0]["content"]) for n in range(200)]
    again = [str(messages(Conversation(Session(n, 0.0, Kind.CHAT, 50, 5), VOICE))[0]["content"]) for n in range(200)]
    assert openings == again
    assert len({it.split()[0] for it in openings}) == 200


def messages(conversation: Conversation) -> list[dict[str, object]]:
    found = conversation.request().body["messages"]
    assert isinstance(found, list)
    return found
