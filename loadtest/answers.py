"""Answers: what was said and when, read from bytes as they arrive. Pure: bytes and instants in, an Answer or a Failed out."""

from __future__ import annotations

from typing import Any

import msgspec

from loadtest.failures import Broken, Cut, Malformed, Refused

#: Fields that a line of server-sent events may begin with (https://html.spec.whatwg.org/multipage/server-sent-events.html).
SSE_FIELDS = (b"event", b"id", b"retry")
DONE = b"[DONE]"


class ToolCall(msgspec.Struct):
    """A call of a tool, put together from its pieces."""

    id: str = ""
    name: str = ""
    arguments: str = ""


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the API counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answer(msgspec.Struct):
    """A whole answer. `instants_s` are when its pieces arrived, on the reader's clock; none for what is not streamed."""

    text: str = ""
    tool_calls: list[ToolCall] = msgspec.field(default_factory=list)
    usage: Usage = Usage()
    instants_s: list[float] = msgspec.field(default_factory=list)


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolPiece(msgspec.Struct):
    index: int
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolPiece] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Error(msgspec.Struct):
    """OpenAI's: a code is a word or null; vLLM's own integers are not its shape."""

    message: str
    type: str
    code: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | msgspec.UnsetType = msgspec.UNSET
    usage: Usage | None = None
    error: _Error | msgspec.UnsetType = msgspec.UNSET


class _ErrorBody(msgspec.Struct):
    error: _Error


class Stream:
    """A streamed chat answer. Feed it whatever was read and when, then ask for the end."""

    def __init__(self) -> None:
        self.answer = Answer()
        self._rest = b""
        self._data: list[bytes] = []
        self._is_done = False

    def feed(self, data: bytes, now: float) -> None:
        """Raises Broken for an error event and Malformed for what no client could read."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line.removesuffix(b"\r"), now)

    def end(self) -> Answer:
        """The whole answer; raises Cut when it has no end."""
        if not self._is_done:
            raise Cut("a stream without [DONE]")
        if self._rest.strip() or self._data:
            raise Malformed("bytes after [DONE]")
        return self.answer

    def _line(self, line: bytes, now: float) -> None:
        name, _, value = line.partition(b":")
        if not line:
            if self._data:
                self._event(b"\n".join(self._data), now)
                self._data = []
        elif name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name and name not in SSE_FIELDS:
            raise Malformed("a line that is no server-sent event")

    def _event(self, data: bytes, now: float) -> None:
        if self._is_done:
            raise Malformed("an event after [DONE]")
        if data == DONE:
            self._is_done = True
            return
        try:
            chunk = msgspec.json.decode(data, type=_Chunk)
        except msgspec.DecodeError:
            raise Malformed("an event that is no chunk of a chat") from None
        if chunk.error is not msgspec.UNSET:
            raise Broken(f"{chunk.error.code or chunk.error.type} in a stream")
        if chunk.choices is msgspec.UNSET:
            raise Malformed("an event that is no chunk of a chat")
        self.answer.usage = chunk.usage or self.answer.usage
        for choice in chunk.choices:
            self._piece(choice.delta, now)

    def _piece(self, delta: _Delta, now: float) -> None:
        if delta.content or delta.reasoning or delta.tool_calls:
            self.answer.instants_s.append(now)
        self.answer.text += delta.content or ""
        for piece in delta.tool_calls or ():
            self._tool_piece(piece)

    def _tool_piece(self, piece: _ToolPiece) -> None:
        calls = self.answer.tool_calls
        if piece.index == len(calls):
            calls.append(ToolCall())
        if not 0 <= piece.index < len(calls):
            raise Malformed("a piece of a tool call that was not begun")
        call = calls[piece.index]
        call.id += piece.id or ""
        call.name += piece.function.name or ""
        call.arguments += piece.function.arguments or ""


class _Embedding(msgspec.Struct):
    embedding: list[float] | str


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    usage: Usage = Usage()


def embeddings(body: bytes) -> Answer:
    """A whole answer with one embedding at least; raises Malformed for anything else."""
    try:
        found = msgspec.json.decode(body, type=_Embeddings)
    except msgspec.DecodeError:
        raise Malformed("a body that is no embedding") from None
    if not found.data or not all(it.embedding for it in found.data):
        raise Malformed("a body without an embedding")
    return Answer(usage=found.usage)


def refusal(status: int, content_type: str, body: bytes) -> Refused | Malformed:
    """What an answer other than 200 is: a refusal in OpenAI's shape, or something no client can read."""
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except msgspec.DecodeError:
        return Malformed(f"{status} whose body is no OpenAI error")
    if not content_type.startswith("application/json") or not error.message:
        return Malformed(f"{status} whose body is no OpenAI error")
    return Refused(f"{status} {error.code or error.type}")


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """The arguments of a tool call; none where the model wrote something else than an object."""
    try:
        return msgspec.json.decode(call.arguments, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
