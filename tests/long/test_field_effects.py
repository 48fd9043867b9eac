"""Every honoured field does something: sent through a real engine, the answer is another one.

Where a model does not show it, the field's table says so; an honoured field without an entry here fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from serving.gateway.dialects import DIALECTS
from serving.gateway.dialects.fields import Disposition
from tests.stack.conftest import SMOLLM2, TINY
from tests.stack.http import bearer, call
from tests.stack.running import Stack, running

MINILM = "all-minilm-l6-v2"
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
INPUT_TOKENS = "/v1/responses/input_tokens"
MESSAGES, COUNT, TOKENIZE, EMBEDDINGS = "/v1/messages", "/v1/messages/count_tokens", "/tokenize", "/v1/embeddings"
#: Every other call names it, and it decides which model answers.
IN_EVERY_CALL = {"model"}
#: Tokens of context, of which `TOO_LONG` has more.
CONTEXT = 4096
TOO_LONG = "sea " * CONTEXT
#: Tokens an answer may have: enough for the effects, and Harmony begins with a header.
TOKENS = {SMOLLM2: 8, TINY: 24}
#: What differs from one answer to the next of the same request.
_CHANCE = re.compile(
    rb'"(?:id|item_id|response_id|call_id|created|created_at|completed_at|cached_tokens|signature)": ?(?:"[^"]*"|[0-9.]+|null)'
)
#: Anthropic's prompt tokens, which its answers part by what the cache had.
_PARTS_OF_PROMPT = re.compile(
    rb'"(?:input_tokens|cache_read_input_tokens|cache_creation_input_tokens)": ?([0-9]+|null)'
)
_TOKENS = re.compile(rb'"(?:output|total|completion)_tokens": ?[0-9]+')
Body = dict[str, Any]


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes


class Model:
    """A running model, and its answers to what is asked again and again."""

    def __init__(self, stack: Stack) -> None:
        self.name = stack.model
        self._stack = stack
        self._known: dict[str, Answer] = {}

    def answer(self, path: str, body: Body) -> Answer:
        asked = {name: value for name, value in body.items() if value is not None}
        stack = self._stack
        status, _, got = call(stack.url, "POST", path, {"model": self.name, **asked}, bearer(stack.key))
        if path == MESSAGES and not body.get("stream"):
            got = b"%d %s" % (
                sum(int(it) for it in _PARTS_OF_PROMPT.findall(got) if it != b"null"),
                _PARTS_OF_PROMPT.sub(b"", got),
            )
        return Answer(status, _CHANCE.sub(b"", got))

    def steady_answer(self, path: str, body: Body) -> Answer:
        """An answer that is the same when it is asked for again, which happens once."""
        key = f"{path} {json.dumps(body, sort_keys=True)}"
        if key not in self._known:
            self._known[key] = ok(self.answer(path, body))
            assert self.answer(path, body) == self._known[key], "another one each time"
        return self._known[key]


#: (model, path, body with the field, body without it) → is its effect seen? Raises AssertionError where that cannot be told.
Sight = Callable[[Model, str, Body, Body], bool]


def another(model: Model, path: str, with_it: Body, without: Body) -> bool:
    """The answer is another one."""
    return ok(model.answer(path, with_it)) != model.steady_answer(path, without)


def another_text(model: Model, path: str, with_it: Body, without: Body) -> bool:
    """The answer is another one but for its tokens: how far an engine gets before the gateway stops it is chance."""
    one, other = (_TOKENS.sub(b"", ok(model.answer(path, body)).body) for body in (with_it, without))
    return one != other


def steady(model: Model, path: str, with_it: Body, without: Body) -> bool:
    """The answer is the same each time, where it else is not: for an API without a seed."""
    assert len({ok(model.answer(path, without)).body for _ in range(4)}) > 1, "the same without it too"
    return ok(model.answer(path, with_it)) == ok(model.answer(path, with_it))


def unsteady(model: Model, path: str, with_it: Body, without: Body) -> bool:
    return steady(model, path, without, with_it)


def fewer_events(model: Model, path: str, with_it: Body, without: Body) -> bool:
    """Less than half as many, which is not chance: an engine under load joins few."""
    few, many = (ok(model.answer(path, body)).body.count(b"data: ") for body in (with_it, without))
    return 2 * few < many


def is_accepted(model: Model, path: str, with_it: Body, without: Body) -> bool:
    """The request is refused without it, and answered with it."""
    return model.answer(path, without).status == 400 and model.answer(path, with_it).status == 200


def ok(answer: Answer) -> Answer:
    assert answer.status == 200, answer
    return answer


class Effect(msgspec.Struct, frozen=True):
    """A value of a field, and how its effect is seen."""

    value: Any
    #: What is sent beside it, with and without it.
    beside: Body = {}
    #: The value it is compared with instead of none.
    against: Any = None
    sight: Sight = another
    #: Model → words of the field's note, which say that this model does not do it.
    but: dict[str, str] = {}
    #: More that is sent to one model alone: token ids are each tokenizer's own.
    by_model: dict[str, Body] = {}
    #: Why no answer shows it, on any model.
    unseen: str = ""


def unseen(why: str) -> Effect:
    return Effect(None, unseen=why)


ASKED = "What is 17 + 25?"
SAID = [{"role": "user", "content": ASKED}]
OTHER = [{"role": "user", "content": "Say hello."}]
#: Sixty-four words between which little decides.
FLAT: Body = {"logit_bias": {str(token): 100 for token in range(1000, 1064)}}
HOT: Body = FLAT | {"temperature": 2.0, "seed": 1}
#: One token for ever.
LOOP: Body = {"logit_bias": {"1000": 100}}
BEGUN: Body = {"messages": [*SAID, {"role": "assistant", "content": "The sum is"}], "add_generation_prompt": False}
LAMP = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}
FUNCTION = {"name": "set_lamp", "description": "Switch a lamp.", "parameters": LAMP}
CHAT_TOOLS: Body = {"tools": [{"type": "function", "function": FUNCTION}]}
FLAT_TOOLS: Body = {"tools": [{"type": "function", **FUNCTION}]}
ANTHROPIC_TOOLS: Body = {"tools": [{"name": "set_lamp", "input_schema": LAMP}]}
SPECIAL: dict[str, Body] = {SMOLLM2: {"logit_bias": {"1": 100}}, TINY: {"logit_bias": {"200006": 100}}}

NO_EFFORTS = {SMOLLM2: "models without efforts think as much as they do"}
AS_EFFORT = {SMOLLM2: "as `reasoning_effort`"}
NO_TOOLS = {SMOLLM2: "SmolLM2's template has no place for tools"}
NO_REASONING = {SMOLLM2: "of models that reason"}
NO_SWITCH = dict.fromkeys(
    (SMOLLM2, TINY), "where the model's template has such a switch: gpt-oss and SmolLM2 have none"
)
NO_START = dict.fromkeys((SMOLLM2, TINY), "SmolLM2's and gpt-oss's tokenizers add none")
NO_SPACES = dict.fromkeys((SMOLLM2, TINY), "SmolLM2's and gpt-oss's tokenizers put none")
NEW_TURN = {TINY: "refused for gpt-oss"}
NOT_CUT = {TINY: "gpt-oss's conversations, which are not cut"}
NO_SIDE = {TINY: "gpt-oss's conversations are not cut"}
PARSED = {TINY: "chat and responses of gpt-oss never show them"}

DRAWN: dict[str, Effect] = {
    "temperature": Effect(2.0, FLAT | {"seed": 1}),
    "top_p": Effect(0.001, HOT),
    "top_k": Effect(1, HOT),
}
SAMPLING: dict[str, Effect] = {
    **DRAWN,
    "frequency_penalty": Effect(2.0, FLAT, against=-2.0),
    "presence_penalty": Effect(2.0, FLAT, against=-2.0),
    "repetition_penalty": Effect(5.0, FLAT),
    "min_p": Effect(1.0, HOT),
    "seed": Effect(2, HOT, against=1),
    "stop": Effect(["e"], {"structured_outputs": {"choice": ["zebra"]}}),
    "include_stop_str_in_output": Effect(
        True, {"structured_outputs": {"choice": ["zebra"]}, "stop": ["e"]}, sight=another_text
    ),
    "logit_bias": Effect({"1000": 100}),
    "stream": Effect(True),
    "structured_outputs": Effect({"choice": ["zebra"]}),
    "stop_token_ids": Effect([1000], LOOP),
    "skip_special_tokens": Effect(False, by_model=SPECIAL, but=PARSED),
}
MORE: dict[str, Effect] = {
    **SAMPLING,
    "max_tokens": Effect(3),
    "n": Effect(2, HOT),
    "min_tokens": Effect(4, LOOP | {"stop_token_ids": [1000]}),
    "stream_options": Effect({"include_usage": True}, {"stream": True, "max_tokens": 1}),
    "allowed_token_ids": Effect([1000]),
    "logprob_token_ids": Effect([1000, 1001], {"logprobs": True}),
    "bad_words": Effect(["()", ".l"], LOOP),
    "truncate_prompt_tokens": Effect(5, but=NOT_CUT),
    "truncation_side": Effect("right", {"truncate_prompt_tokens": 5}, against="left", but=NO_SIDE),
    "response_format": Effect({"type": "json_schema", "json_schema": {"name": "lamp", "schema": LAMP}}),
    "repetition_detection": Effect({"max_pattern_size": 4, "min_count": 3}, LOOP),
    "stream_interval": Effect(8, {"stream": True}, sight=fewer_events),
    "add_special_tokens": Effect(True, against=False, but=NO_START),
    "spaces_between_special_tokens": Effect(False, {"skip_special_tokens": False}, against=True, but=NO_SPACES),
}
EFFORTS: dict[str, Effect] = {
    "reasoning_effort": Effect("low", but=NO_EFFORTS),
    "thinking_token_budget": Effect(1024, but=AS_EFFORT),
    "thinking_budget": Effect(1024, but=AS_EFFORT),
    "reasoning": Effect({"effort": "low"}, but=AS_EFFORT),
    "thinking": Effect({"type": "disabled"}, but=AS_EFFORT),
    "enable_thinking": Effect(False, but=AS_EFFORT),
}
SWITCHES = Effect({"enable_thinking": False}, against={"enable_thinking": True}, but=NO_SWITCH)
CONTINUED = BEGUN | {"continue_final_message": True}

BASES: dict[str, Body] = {
    CHAT: {"messages": SAID, "temperature": 0},
    COMPLETIONS: {"prompt": "The sea is wide and the", "temperature": 0},
    RESPONSES: {"input": ASKED, "temperature": 0},
    INPUT_TOKENS: {"input": ASKED},
    MESSAGES: {"messages": SAID, "temperature": 0},
    COUNT: {"messages": SAID},
    TOKENIZE: {"messages": SAID},
    EMBEDDINGS: {"input": ASKED},
}
EFFECTS: dict[str, dict[str, Effect]] = {
    CHAT: {
        **MORE,
        **EFFORTS,
        "messages": Effect(OTHER, against=SAID),
        "max_completion_tokens": Effect(3),
        "logprobs": Effect(True),
        "top_logprobs": Effect(3, {"logprobs": True}),
        "return_tokens_as_token_ids": Effect(True, {"logprobs": True}),
        "tools": Effect(CHAT_TOOLS["tools"]),
        "tool_choice": Effect("required", CHAT_TOOLS),
        "parallel_tool_calls": unseen("neither model calls twice in one answer"),
        "include_reasoning": Effect(False, but=NO_REASONING),
        "add_generation_prompt": Effect(False, but=NEW_TURN),
        "continue_final_message": Effect(True, BEGUN, but=NEW_TURN),
        "echo": Effect(True, CONTINUED, but=NEW_TURN),
        "chat_template_kwargs": SWITCHES,
    },
    COMPLETIONS: {
        **MORE,
        "skip_special_tokens": Effect(False, by_model=SPECIAL),
        "truncate_prompt_tokens": Effect(5),
        "truncation_side": Effect("right", {"truncate_prompt_tokens": 5}, against="left"),
        "prompt": Effect("A list of words:", against="The sea is"),
        "logprobs": Effect(2),
        "logprob_token_ids": Effect([1000, 1001], {"logprobs": 1}),
        "return_tokens_as_token_ids": Effect(True, {"logprobs": 1}),
        "echo": Effect(True),
    },
    RESPONSES: {
        **SAMPLING,
        "input": Effect("Say hello.", against=ASKED),
        "instructions": Effect("Answer in French."),
        "max_output_tokens": Effect(3),
        "max_tool_calls": Effect(3),
        "metadata": Effect({"note": "mine"}),
        "parallel_tool_calls": Effect(False),
        "reasoning": Effect({"effort": "low"}, but=NO_EFFORTS),
        "include_reasoning": Effect(False, but=NO_REASONING | {TINY: "false is refused for gpt-oss"}),
        "include": Effect(["message.output_text.logprobs"], {"top_logprobs": 2}, but={TINY: "refused for gpt-oss"}),
        "top_logprobs": Effect(3, {"include": ["message.output_text.logprobs"]}, but={TINY: "refused for gpt-oss"}),
        "text": Effect({"format": {"type": "json_schema", "name": "lamp", "schema": LAMP}}),
        "tools": Effect(FLAT_TOOLS["tools"]),
        "tool_choice": Effect("required", FLAT_TOOLS),
        "truncation": Effect("auto", {"input": TOO_LONG}, sight=is_accepted),
        "chat_template_kwargs": SWITCHES,
    },
    INPUT_TOKENS: {
        "input": Effect("Say hello.", against=ASKED),
        "instructions": Effect("Answer in French."),
        "reasoning": unseen("an effort is one word, whichever it is"),
        "tools": Effect(FLAT_TOOLS["tools"], but=NO_TOOLS),
        "tool_choice": unseen("`none` is a count without tools"),
        "chat_template_kwargs": SWITCHES,
    },
    MESSAGES: {
        "messages": Effect(OTHER, against=SAID),
        "system": Effect("Answer in French."),
        "thinking": Effect({"type": "enabled", "budget_tokens": 1024}, {"max_tokens": 1025}, but=NO_EFFORTS),
        "output_config": Effect({"format": {"type": "json_schema", "schema": LAMP}}),
        "output_format": Effect({"type": "json_schema", "schema": LAMP}),
        "tools": Effect(ANTHROPIC_TOOLS["tools"]),
        "tool_choice": Effect({"type": "any"}, ANTHROPIC_TOOLS),
        "chat_template_kwargs": SWITCHES,
        "max_tokens": Effect(3, against=5),
        "stop_sequences": Effect(["e"], {"output_config": {"format": {"type": "json_schema", "schema": LAMP}}}),
        "stream": Effect(True),
        "temperature": Effect(2.0, against=0, sight=unsteady),
        "top_p": Effect(0.001, {"temperature": 2.0}, sight=steady),
        "top_k": Effect(1, {"temperature": 2.0}, sight=steady),
    },
    COUNT: {
        "messages": Effect(OTHER, against=SAID),
        "system": Effect("Answer in French."),
        "thinking": unseen("an effort is one word, whichever it is"),
        "output_config": unseen("an effort is one word, and a format is no part of the prompt"),
        "output_format": unseen("a format is no part of the prompt"),
        "tools": Effect(ANTHROPIC_TOOLS["tools"], but=NO_TOOLS),
        "tool_choice": Effect({"type": "none"}, ANTHROPIC_TOOLS, but=NO_TOOLS),
        "chat_template_kwargs": SWITCHES,
    },
    TOKENIZE: {
        "prompt": Effect("hi", {"messages": None}, against="hi there"),
        "messages": Effect(OTHER, against=SAID),
        "add_special_tokens": Effect(True, against=False, but=NO_START),
        "return_token_strs": Effect(True),
        "add_generation_prompt": Effect(False, but=NEW_TURN),
        "continue_final_message": Effect(True, BEGUN, but=NEW_TURN),
        "chat_template_kwargs": SWITCHES,
        "tools": Effect(CHAT_TOOLS["tools"], but=NO_TOOLS),
    },
    EMBEDDINGS: {
        "input": Effect("hi", against=ASKED),
        "encoding_format": Effect("base64", against="float"),
        "dimensions": Effect(128, but={MINILM: "refused for models of one size, such as all-minilm-l6-v2"}),
        "truncate_prompt_tokens": Effect(3),
        "truncation_side": Effect("left", {"truncate_prompt_tokens": 3}, against="right"),
        "add_special_tokens": Effect(False, against=True),
        "use_activation": Effect(False, against=True),
    },
}
SEEN = [(path, name) for path, effects in EFFECTS.items() for name, effect in effects.items() if not effect.unseen]


@pytest.mark.parametrize("path", DIALECTS)
def test_every_honoured_field_has_an_entry(path: str) -> None:
    """A new field comes with a way to see what it does."""
    honoured = {name for name, field in DIALECTS[path].fields.items() if field.disposition is Disposition.HONOURED}
    assert honoured - IN_EVERY_CALL == EFFECTS[path].keys()


@pytest.mark.parametrize(("path", "name"), SEEN)
def test_the_table_says_which_models_do_not_do_it(path: str, name: str) -> None:
    """In the words that stand here."""
    for words in EFFECTS[path][name].but.values():
        assert words in DIALECTS[path].fields[name].note


#: Each field with each model that has its route and, by the field's note, does it.
DONE = [
    (model, path, name)
    for model in (SMOLLM2, TINY, MINILM)
    for path, name in SEEN
    if (model == MINILM) == (path == EMBEDDINGS) and model not in EFFECTS[path][name].but
]


@pytest.fixture(scope="module")
def running_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Model]]:
    """A model by its name, started when the one before it has been stopped: two do not fit beside each other."""
    with ExitStack() as stacks:
        known: dict[str, Model] = {}

        def get(name: str) -> Model:
            if name not in known:
                stacks.close()
                known.clear()
                known[name] = Model(stacks.enter_context(running(tmp_path_factory.mktemp("effects"), name)))
            return known[name]

        yield get


def is_seen(model: Model, path: str, name: str, effect: Effect) -> bool:
    limits = dict.fromkeys(DIALECTS[path].limit_fields[-1:], TOKENS.get(model.name))
    base = limits | BASES[path] | effect.beside | effect.by_model.get(model.name, {})
    return effect.sight(model, path, base | {name: effect.value}, base | {name: effect.against})


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("model", "path", "name"), DONE)
def test_every_honoured_field_has_an_effect(
    running_model: Callable[[str], Model], model: str, path: str, name: str
) -> None:
    """On every model whose table entry does not except it."""
    assert is_seen(running_model(model), path, name, EFFECTS[path][name])
