"""Continuation: an answer that another engine has begun goes on here, token by token as if this engine had begun it (RLY-53).

A gateway asks for it by a header, and gets with each event the tokens behind it, as an SSE comment that it takes out again. When
that engine dies, the gateway sends the same request to another one, and before its body the tokens that the client has. Here they
are given to vLLM's own detokenizer and parsers as if they had just been generated, in the same portions, while the engine itself
gets them as part of the prompt. So every route makes the very events that the first engine made, up to the seam and past it, in
whatever message, call or channel of Harmony it lies; the gateway leaves out those that its client has already.

vLLM (0.32) seen: `AsyncLLM.generate` and `_add_request`, `OutputProcessor.request_states`, `RequestState.make_request_output`, and
`random_uuid` where answers get their ids. `tests/engine/test_continuation.py` fails where they change.

What cannot go on is never noted, so a gateway has nothing to send: several choices or prompts, log probabilities, penalties on
output alone, words that are forbidden, budgets of thinking. A grammar takes what was sent first (`engine/grammars`).
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextvars import ContextVar
from functools import wraps
from typing import Any

import msgspec

from serving.engine.grammars import SENT_TOKENS
from serving.wire import NOTE, SEED_HEADER, SENT_HEADER, LastPortion, Portion

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Modules of vLLM that give parts of answers random ids: those must be the same at the engine that goes on.
_WITH_IDS = (
    "vllm.renderers.chat_utils",
    "vllm.entrypoints.openai.responses.context",
    "vllm.entrypoints.openai.responses.harmony",
    "vllm.entrypoints.openai.responses.protocol",
    "vllm.entrypoints.openai.responses.serving",
    "vllm.entrypoints.openai.responses.streaming_events",
    "vllm.entrypoints.openai.responses.utils",
)
#: Tokens that are replayed before others have their turn in the event loop.
_REPLAYED_AT_ONCE = 256
_EVENT_BORDER = b"\n\n"

_journal: ContextVar[Journal | None] = ContextVar("journal", default=None)


class Journal:
    """One request of a gateway that wants to be able to go on elsewhere."""

    def __init__(self, seed: str, sent_bytes: int) -> None:
        self._seed = seed
        self._sent_bytes = sent_bytes
        #: Tokens that another engine has sent, in its portions; empty in a request that begins.
        self.sent: list[Portion] = []
        #: The same as this engine's output.
        self.replayed: list[Any] = []
        self.is_replayed = asyncio.Event()
        #: None once it is known that this request cannot go on elsewhere.
        self._unnoted: list[Portion] | None = []
        self._ids = 0
        self._has_generated = False

    async def received(self, receive: Receive) -> Receive:
        """Read what was sent; the `receive` for the rest of the body."""
        if not self._sent_bytes:
            return receive
        head = bytearray()
        message: Message = {"more_body": True}
        while len(head) < self._sent_bytes and message.get("more_body"):
            message = await receive()
            head += message.get("body", b"")
        self.sent = msgspec.json.decode(bytes(head[: self._sent_bytes]), type=list[Portion])
        first: list[Message] = [{**message, "body": bytes(head[self._sent_bytes :])}]

        async def rest() -> Message:
            return first.pop() if first else await receive()

        return rest

    def noting(self, send: Send) -> Send:
        """A `send` that says before each event which tokens are behind it."""

        async def send_noted(message: Message) -> None:
            body = message.get("body", b"")
            if self._unnoted and body.endswith(_EVENT_BORDER):
                note = NOTE + msgspec.json.encode(self._unnoted)[1:-1] + _EVENT_BORDER
                self._unnoted.clear()
                message = {**message, "body": note + body}
            await send(message)

        return send_noted

    def may_go_on(self, prompt: Any, params: Any) -> bool:
        """Whether what this request generates can go on at another engine."""
        if self._has_generated or not is_continuable(prompt, params):
            self._unnoted = None
            return False
        self._has_generated = True
        return True

    def note(self, output: Any) -> None:
        """One output of the engine, before an event is made of it."""
        if self.sent and output.num_cached_tokens:
            # Of what was sent a part may be cached too, which is no prompt of the client's.
            output.num_cached_tokens = min(output.num_cached_tokens, len(output.prompt_token_ids))
        if self._unnoted is not None:
            self._unnoted.append(_portion(output.outputs[0]))

    def next_id(self) -> str:
        """In place of a random id: the next one of those that this request has wherever it runs."""
        self._ids += 1
        return hashlib.blake2s(f"{self._seed}/{self._ids}".encode(), digest_size=16).hexdigest()


def of_headers(headers: list[tuple[bytes, bytes]]) -> Journal | None:
    """The journal that a gateway asks for; None where it does not."""
    found = dict(headers)
    seed = found.get(SEED_HEADER)
    return None if seed is None else Journal(seed.decode("latin-1"), int(found.get(SENT_HEADER, b"0")))


async def entered(journal: Journal, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """What the application gets of a request with this journal, in this context and those that it begets."""
    rest = await journal.received(receive)
    _journal.set(journal)
    return rest, journal.noting(send)


def is_continuable(prompt: Any, params: Any) -> bool:
    """May a request's generation go on from its tokens alone? `params` are vLLM's SamplingParams."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return (
        isinstance(params, SamplingParams)
        and isinstance(prompt, dict)
        and prompt.get("type") == "token"
        and params.n == 1
        and params.output_kind is RequestOutputKind.DELTA
        and params.detokenize
        and params.presence_penalty == params.frequency_penalty == 0
        and not params.bad_words
        and not params.extra_args
        and not any(getattr(params, name) is not None for name in _STATEFUL)
    )


#: Parameters whose effect depends on more than the tokens so far, or that need them all at one engine.
_STATEFUL = (
    "logprobs",
    "prompt_logprobs",
    "thinking_token_budget",
    "repetition_detection",
)


def install() -> None:
    """Replace the methods in this process. vLLM is imported here: only engines have it."""
    from vllm.v1.engine.async_llm import AsyncLLM

    AsyncLLM.generate = with_journal(AsyncLLM.generate)
    AsyncLLM._add_request = with_replay(AsyncLLM._add_request)
    for name in _WITH_IDS:
        module: Any = importlib.import_module(name)
        module.random_uuid = with_ids(module.random_uuid)


def with_ids(random_uuid: Callable[[], str]) -> Callable[[], str]:
    """A `random_uuid` that gives a request with a journal the same ids at every engine."""

    @wraps(random_uuid)
    def seeded() -> str:
        journal = _journal.get()
        return random_uuid() if journal is None else journal.next_id()

    return seeded


def with_journal(generate: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """An `AsyncLLM.generate` that keeps the request's journal, and yields what another engine has sent before its own."""

    @wraps(generate)
    def generate_noted(engine: Any, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        journal = _journal.get()
        outputs = generate(engine, prompt, params, *args, **kwargs)
        if journal is None:
            return outputs
        if not journal.may_go_on(prompt, params):
            if journal.sent:
                raise ValueError("a request that cannot go on at another engine was sent to go on")
            return outputs
        return _noted(journal, outputs)

    return generate_noted


async def _noted(journal: Journal, outputs: AsyncIterator[Any]) -> AsyncIterator[Any]:
    if journal.sent:
        # The engine reads the prompt and what was sent while parsers see the latter.
        first = asyncio.ensure_future(anext(outputs, None))
        try:
            await _either(journal.is_replayed.wait(), first)
            for output in journal.replayed:
                journal.note(output)
                yield output
            if isinstance(journal.sent[-1], LastPortion):
                return
            output = await first
        finally:
            # Where nothing is left to make, this ends the request.
            first.cancel()
            await asyncio.wait([first])
        if output is None:
            return
        journal.note(output)
        yield output
    async for output in outputs:
        journal.note(output)
        yield output


async def _either(wait: Any, first: asyncio.Future[Any]) -> None:
    """Until the replay is there, or the request has failed before it; raises its failure."""
    waiting = asyncio.ensure_future(wait)
    await asyncio.wait([waiting, first], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if first.done():
        first.result()


def with_replay(add_request: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """An `AsyncLLM._add_request` by which a request goes on: vLLM's front end begins it anew, its core gets it with what was sent."""

    @wraps(add_request)
    async def add_replayed(engine: Any, request: Any, prompt: Any, parent: Any, index: int, queue: Any) -> None:
        journal = _journal.get()
        if journal is None or not journal.sent:
            await add_request(engine, request, prompt, parent, index, queue)
            return
        engine.check_admission(request_id=request.request_id)
        engine.output_processor.add_request(request, prompt, parent, index, queue)
        state = engine.output_processor.request_states[request.request_id]
        for number, output in enumerate(replayed(state, journal.sent), start=1):
            journal.replayed.append(output)
            if number % _REPLAYED_AT_ONCE == 0:
                await asyncio.sleep(0)
        if not isinstance(journal.sent[-1], LastPortion):
            go_on(request, journal.sent)
            await engine.engine_core.add_request_async(request)
        journal.is_replayed.set()

    return add_replayed


def replayed(state: Any, sent: list[Portion]) -> Iterator[Any]:
    """The outputs of vLLM's front end for tokens that another engine made; `state` is its RequestState, which follows."""
    interval, state.stream_interval = state.stream_interval, 1
    for portion in sent:
        if isinstance(portion, LastPortion):
            yield _ended(state, portion)
        else:
            state.detokenizer.update(list(portion), False)
            yield state.make_request_output(portion, None, None, None)
    state.stream_interval = interval
    state.sent_tokens_offset = state.detokenizer.num_output_tokens()


def _ended(state: Any, last: LastPortion) -> Any:
    from vllm.v1.engine import FinishReason

    # A token that ends an answer has no text; of a stop string the detokenizer sees for itself.
    ends_by_token = last.finish_reason == "stop" and not isinstance(last.stop_reason, str)
    state.detokenizer.update(list(last.tokens), ends_by_token)
    return state.make_request_output(last.tokens, None, FinishReason[last.finish_reason.upper()], last.stop_reason)


def _portion(made: Any) -> Portion:
    tokens = list(made.token_ids)
    return LastPortion(tokens, made.finish_reason, made.stop_reason) if made.finish_reason else tokens


def _tokens(portion: Portion) -> list[int]:
    return portion.tokens if isinstance(portion, LastPortion) else portion


def go_on(request: Any, sent: list[Portion]) -> None:
    """Change an EngineCoreRequest so that it goes on behind what was sent: as part of its prompt, and of its limits."""
    tokens = [token for portion in sent for token in _tokens(portion)]
    request.prompt_token_ids = [*request.prompt_token_ids, *tokens]
    params = request.sampling_params.clone()
    params.max_tokens = max(params.max_tokens - len(tokens), 1)
    params.min_tokens = max(params.min_tokens - len(tokens), 0)
    if params.structured_outputs is not None:
        params.extra_args = {SENT_TOKENS: len(tokens)}
    request.sampling_params = params
