"""An answer goes on at another engine: by vLLM's own front end, whose classes are held against what is assumed of them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from serving.engine import continuation
from serving.engine.continuation import Journal, go_on, is_continuable, of_headers, replayed, with_ids, with_journal
from serving.wire import NOTE, SEED_HEADER, SENT_HEADER, LastPortion, Portion

PROMPT = {"type": "token", "prompt_token_ids": [1, 2]}


def params(**changed: Any) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(**{"max_tokens": 10, "output_kind": RequestOutputKind.DELTA} | changed)


class Output:
    """As much of vLLM's RequestOutput as is noted."""

    def __init__(self, *tokens: int, finish_reason: str | None = None) -> None:
        self.token_ids, self.finish_reason, self.stop_reason = tokens, finish_reason, None
        self.outputs = [self]


async def through(journal: Journal, *outputs: Output, prompt: Any = PROMPT, sampling: Any = None) -> list[bytes]:
    """What a client gets of a stream with an event for each output."""
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message["body"])

    async def generate(*_: Any) -> AsyncIterator[Output]:
        for output in outputs:
            yield output

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    _, noting = await continuation.entered(journal, receive, send)
    async for output in with_journal(generate)(None, prompt, sampling or params()):
        await noting({"type": "http.response.body", "body": b"data: %d\n\n" % output.token_ids[0]})
    return sent


async def test_tokens_are_noted_before_their_events() -> None:
    """With the portions in which they came, and why the engine stopped."""
    noted = await through(Journal("s", 0), Output(1), Output(2, 3), Output(4, finish_reason="stop"))
    assert noted == [
        b": tokens [1]\n\ndata: 1\n\n",
        b": tokens [2,3]\n\ndata: 2\n\n",
        b': tokens {"tokens":[4],"finish_reason":"stop","stop_reason":null}\n\ndata: 4\n\n',
    ]
    portions = msgspec.json.decode(b"[" + noted[2].removeprefix(NOTE).partition(b"\n")[0] + b"]", type=list[Portion])
    assert portions == [LastPortion([4], "stop")]


@pytest.mark.parametrize(
    "changed",
    [
        {"n": 2},
        {"logprobs": 1},
        {"prompt_logprobs": 1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
        {"bad_words": ["no"]},
        {"thinking_token_budget": 5},
        {"extra_args": {"kv_transfer_params": {}}},
        {"output_kind": None},
    ],
    ids=str,
)
async def test_what_cannot_go_on_is_not_noted(changed: dict[str, Any]) -> None:
    """A gateway that gets no tokens ends the stream as before."""
    from vllm.sampling_params import RequestOutputKind

    if "output_kind" in changed:
        changed = {"output_kind": RequestOutputKind.CUMULATIVE}
    assert is_continuable(PROMPT, params(extra_args={}, bad_words=[])) and not is_continuable(PROMPT, params(**changed))
    assert await through(Journal("s", 0), Output(1), sampling=params(**changed)) == [b"data: 1\n\n"]
    assert not is_continuable({"type": "embeds"}, params()) and not is_continuable("text", params())


async def test_two_generations_in_one_request_are_not_noted() -> None:
    """Several prompts, or a tool that the engine calls itself: their tokens would be one row."""
    journal = Journal("s", 0)
    assert journal.may_go_on(PROMPT, params()) and not journal.may_go_on(PROMPT, params())
    journal.note(Output(1))
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await journal.noting(send)({"body": b"data: 1\n\n"})
    assert sent == [{"body": b"data: 1\n\n"}]


@pytest.mark.parametrize("cuts", [(), (1,), (5, 30), (9,)], ids=str)
async def test_the_tokens_before_a_body_are_read_off(cuts: tuple[int, ...]) -> None:
    """However both are cut into messages."""
    sent = b'[[1,2],{"tokens":[3],"finish_reason":"length","stop_reason":null}]'
    whole = sent + b'{"model":"m"}'
    ends = [*cuts, len(whole)]
    pieces = [whole[start:end] for start, end in zip([0, *cuts], ends, strict=True)]
    messages = [{"body": piece, "more_body": at + 1 < len(pieces)} for at, piece in enumerate(pieces)]

    async def receive() -> Any:
        return messages.pop(0)

    journal = of_headers([(SEED_HEADER, b"s"), (SENT_HEADER, b"%d" % len(sent))])
    assert journal is not None
    rest, body, more = await journal.received(receive), b"", True
    while more:
        message = await rest()
        body, more = body + message["body"], message["more_body"]
    assert body == b'{"model":"m"}' and journal.sent == [[1, 2], LastPortion([3], "length")]
    assert of_headers([(b"x-other", b"s")]) is None


async def test_ids_are_the_same_at_every_engine() -> None:
    """Of a request with a journal; others stay random."""
    drawn = with_ids(lambda: "random")
    assert drawn() == "random"

    async def ids(seed: str) -> list[str]:
        await through(Journal(seed, 0))
        return [drawn(), drawn()]

    one, again, other = [await asyncio.create_task(ids(seed)) for seed in ("a", "a", "b")]
    assert one == again != other and len(set(one)) == 2 and all(len(it) == 32 for it in one)


def state_of(tokenizer: Any, sampling: Any) -> Any:
    """vLLM's own state of a request in its front end."""
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.output_processor import RequestState

    request = EngineCoreRequest("r", [1, 2], None, sampling, None, 0.0, None, None, None, external_req_id="r")
    return RequestState.from_new_request(tokenizer, request, None, None, 0, None, log_stats=False, stream_interval=1)


def test_vllms_front_end_says_again_what_it_said() -> None:
    """Portion by portion, characters of several tokens included, and goes on from there."""
    from openai_harmony import HarmonyEncodingName, load_harmony_encoding
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    assert load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain)
    tokens = plain.encode("häst stop").ids
    portions: list[Portion] = [tokens[:2], tokens[2:3], tokens[3:5]]
    state = state_of(tokenizer, params(stop=["t st"]))
    outputs = list(replayed(state, portions))
    assert [output.outputs[0].token_ids for output in outputs] == portions
    assert [output.prompt_token_ids for output in outputs] == [[1, 2]] * 3
    rest = [state.detokenizer.update([token], False) for token in tokens[5:]]
    # A stop string that begins before the seam is found behind it.
    assert "t st" in rest and state.detokenizer.output_text.startswith("häs")


def test_the_core_gets_what_was_sent_as_part_of_its_prompt_and_limits() -> None:
    """The front end's own list and parameters stay as they were: usage counts the prompt once."""
    from vllm.v1.engine import EngineCoreRequest

    prompt, sampling = [1, 2], params(max_tokens=10, min_tokens=4)
    request = EngineCoreRequest("r", prompt, None, sampling, None, 0.0, None, None, None)
    go_on(request, [[3, 4], LastPortion([5], "length")])
    assert request.prompt_token_ids == [1, 2, 3, 4, 5] and prompt == [1, 2]
    assert (request.sampling_params.max_tokens, request.sampling_params.min_tokens) == (7, 1)
    assert (sampling.max_tokens, sampling.min_tokens) == (10, 4)


def test_vllm_is_as_assumed() -> None:
    """The methods that are replaced, and what they are given."""
    import importlib

    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import RequestState

    assert list(inspect.signature(AsyncLLM._add_request).parameters) == [
        *("self", "request", "prompt", "parent_req", "index", "queue")
    ]
    assert list(inspect.signature(AsyncLLM.generate).parameters)[:4] == [
        "self",
        "prompt",
        "sampling_params",
        "request_id",
    ]
    assert list(inspect.signature(RequestState.make_request_output).parameters)[1:5] == [
        *("new_token_ids", "pooling_output", "finish_reason", "stop_reason")
    ]
    assert "self.output_processor.add_request(request, prompt, parent_req, index, queue)" in inspect.getsource(
        AsyncLLM._add_request
    )
    for name in continuation._WITH_IDS:
        assert callable(importlib.import_module(name).random_uuid)
