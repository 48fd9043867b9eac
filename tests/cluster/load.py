"""Clients that never stop asking while something is done to the installation; every call that did not end well is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import openai

QUESTION: Any = [{"role": "user", "content": "Name the capital of France."}]
#: Seconds between two calls of a client.
PAUSE_S = 0.5


class Ask(Protocol):
    """One whole call, that raises when it did not end well. Told the number of the call."""

    def __call__(self, number: int) -> object: ...


class Failure(NamedTuple):
    """A call that did not end well."""

    at_s: float
    """Seconds since the load began."""
    what: str

    def __str__(self) -> str:
        return f"after {self.at_s:.1f} s: {self.what}"


class Load:
    """Some clients that ask again and again: `with Load(…) as load: …`, and then `load.failures` is read.

    They pause between two calls: what is looked for are calls that fail, and a small cluster has other work to do too.
    """

    def __init__(
        self, ask: Ask, *, clients: int = 2, pause_s: float = PAUSE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._pause_s = pause_s
        self._clock = clock
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._began = clock()
        self._threads = [threading.Thread(target=self._keep_asking) for _ in range(clients)]
        self._asked = 0
        self.answered = 0
        self.failures: list[Failure] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Begin no more calls, and let those that run end: a call cut here would count as one that failed."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _keep_asking(self) -> None:
        while not self._is_over.is_set():
            with self._lock:
                self._asked += 1
                number = self._asked
            try:
                self._ask(number)
            except Exception as error:  # noqa: BLE001 Whatever it was, a client did not get its answer.
                self._fail(f"call {number}: {type(error).__name__}: {error}")
            else:
                with self._lock:
                    self.answered += 1
            self._is_over.wait(self._pause_s)

    def _fail(self, what: str) -> None:
        with self._lock:
            self.failures.append(Failure(self._clock() - self._began, what))


class Unfinished(Exception):
    """An answer that came, and not to its end."""


class Chats:
    """Short chats with one model, every other one as a stream."""

    def __init__(self, client: openai.OpenAI, model: str) -> None:
        self._client = client
        self._model = model

    def __call__(self, number: int) -> object:
        if number % 2:
            return self.whole(8)
        return self.stream(8)

    def whole(self, tokens: int) -> str:
        """The text of an answer. Raises Unfinished when it has no end."""
        answer = self._client.chat.completions.create(model=self._model, messages=QUESTION, max_tokens=tokens)
        (choice,) = answer.choices
        if choice.finish_reason not in {"stop", "length"}:
            raise Unfinished(f"finish_reason is {choice.finish_reason}")
        return choice.message.content or ""

    def stream(self, tokens: int, at_least: int = 0, begun: threading.Event | None = None) -> str:
        """The same, in pieces; `begun` is set at the first. Raises Unfinished when it breaks off."""
        pieces, reason = [], None
        for chunk in self._client.chat.completions.create(
            model=self._model, messages=QUESTION, max_tokens=tokens, stream=True, extra_body={"min_tokens": at_least}
        ):
            if begun is not None:
                begun.set()
            for choice in chunk.choices:
                pieces.append(choice.delta.content or "")
                reason = choice.finish_reason or reason
        if reason not in {"stop", "length"}:
            raise Unfinished(f"the stream ended after {len(pieces)} pieces with finish_reason {reason}")
        return "".join(pieces)


#: Tokens of the stream that an engine's speed is measured with; and most of a long one, under the demo model's 4,096.
SAMPLE_TOKENS = 64
MOST_TOKENS = 3900


def tokens_of(seconds: float, chats: Chats, clock: Callable[[], float] = time.monotonic) -> int:
    """The length of a stream that takes so long on an engine with nothing else to do, by one that is measured now."""
    began = clock()
    chats.stream(SAMPLE_TOKENS, at_least=SAMPLE_TOKENS)
    return max(SAMPLE_TOKENS, min(MOST_TOKENS, int(SAMPLE_TOKENS * seconds / (clock() - began))))


class Stream:
    """One long stream that runs beside what is done: whether it still runs, and how it ended."""

    def __init__(self, chats: Chats, tokens: int) -> None:
        self._chats = chats
        self._tokens = tokens
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._error: Exception | None = None
        self._text: str | None = None
        self.begun = threading.Event()
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self.begun.is_set() and self._thread.is_alive()

    def text(self, within_s: float) -> str:
        """All of it. Raises what broke it, or Unfinished when it takes longer than that."""
        self._thread.join(within_s)
        if self._error is not None:
            raise self._error
        if self._text is None:
            raise Unfinished(f"the stream still runs after {within_s:.0f} s")
        return self._text

    def _read(self) -> None:
        try:
            self._text = self._chats.stream(self._tokens, at_least=self._tokens, begun=self.begun)
        except Exception as error:  # noqa: BLE001 Raised where the test reads it.
            self._error = error
