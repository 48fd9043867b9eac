"""Call: a request body, read once. What the gateway decides on is taken out of it, what the gateway owns is put in."""

from __future__ import annotations

import copy
import re
from collections.abc import Set
from itertools import accumulate
from typing import Any

import msgspec

from serving.errors import InvalidRequest
from serving.gateway.answers.asked import Asked
from serving.gateway.answers.reasoning import FORGETFUL, Keeper
from serving.gateway.dialects import constraints, conversation, fields, structure
from serving.gateway.dialects.checks import StreamOptions
from serving.gateway.dialects.dialect import Body, ChunkStream, Dialect
from serving.gateway.http.asgi import Header
from serving.gateway.nouns import Right

#: Objects and lists inside one another; tool schemas need about ten. The engine's parsers recurse.
NESTING_MAX = 64

#: Names what of a request was left out, such as hosted tools; the answer came about without it.
LEFT_OUT_HEADER = b"x-left-out"
#: Characters of names in it: a proxy such as nginx takes all headers of an answer in 4 KiB.
LEFT_OUT_CHARS_MAX = 1024
UNSAFE_IN_HEADER = re.compile(r"[^A-Za-z0-9_.:-]")

#: Fields that say what is made of a prompt, and nothing of the prompt.
_OF_OUTPUTS = frozenset(
    {
        "stream_options",
        "min_tokens",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "logprobs",
        "top_logprobs",
    }
)
#: With these an engine computes a whole prompt itself, whatever it is handed.
_OF_WHOLE_PROMPTS = frozenset({"echo", "prompt_logprobs"})

#: Fields that carry schemas an engine may compile.
_SCHEMA_FIELDS = frozenset({"tools", "response_format", "structured_outputs", "text", "output_config"})


class Call(msgspec.Struct, frozen=True):
    """One checked call, ready for any replica of its model."""

    dialect: Dialect
    #: The served model's name, aliases resolved.
    model: str
    #: The body as engines get it.
    body: bytes
    is_streamed: bool
    #: The client asked for the final usage chunk.
    wants_usage: bool
    #: The client asked for usage in every chunk.
    wants_continuous_usage: bool
    #: Sequences the engine generates: prompts × n.
    sequences: int
    #: Sequences of one prompt (`n`).
    choices: int
    #: Output tokens of one sequence at most: the client's own limit, else the model's default; None where there is neither.
    output_tokens_max: int | None
    #: The field in which the client set it; None where it did not.
    limit_field: str | None = None
    #: What the answer depends on beside what the engine gets.
    asked: Asked = Asked()
    #: Its conversation in blocks (`conversation`): calls that begin alike have a prefix in common.
    prefix: tuple[int, ...] = ()
    #: The engine streams, and the client gets a whole answer put together from that.
    is_assembled: bool = False

    def prompt_alone(self) -> Call | None:
        """The call for an engine that computes its prompt and keeps the KV for another one; None where none can take it over."""
        fields = msgspec.json.decode(self.body, type=dict[str, msgspec.Raw])
        if self.dialect.stream is None or self.sequences > 1 or fields.keys() & _OF_WHOLE_PROMPTS:
            return None
        kept: dict[str, object] = {name: value for name, value in fields.items() if name not in _OF_OUTPUTS}
        kept |= {self.dialect.default_limit_field or "max_tokens": 1, "stream": False}
        kept["kv_transfer_params"] = {"do_remote_decode": True, "do_remote_prefill": False}
        return msgspec.structs.replace(self, body=msgspec.json.encode(kept), is_streamed=False, is_assembled=False)

    def with_transfer(self, transfer: bytes) -> Call:
        """The same call for an engine that gets its prompt's KV from where `transfer` says."""
        body = b'%b,"kv_transfer_params":%b}' % (self.body[:-1], transfer)
        return msgspec.structs.replace(self, body=body) if transfer else self

    def asked_whole(self) -> Call:
        """The same call, to be answered whole."""
        body: Body = msgspec.json.decode(self.body)
        body.pop("stream_options", None)
        whole = msgspec.json.encode(body | {"stream": False})
        return msgspec.structs.replace(self, body=whole, is_streamed=False, is_assembled=False)


class Draft(msgspec.Struct, frozen=True):
    """A body whose fields are checked, before its model is known to exist."""

    dialect: Dialect
    requested_model: str
    kept: Body
    #: What the client asked for and goes on without, such as hosted tools: the answer's header says so.
    left_out: tuple[str, ...] = ()
    #: Fields that the answer repeats, as they were sent.
    echoed: Body = {}

    def headers(self) -> list[Header]:
        """What the client is told besides its answer."""
        names = [UNSAFE_IN_HEADER.sub("_", name) for name in self.left_out]
        return [(LEFT_OUT_HEADER, _listed(names).encode("ascii"))] if names else []

    def finish(
        self, model: str, cache_salt: str, default_output_tokens: int | None = None, keeper: Keeper = FORGETFUL
    ) -> Call:
        """The call as it goes to an engine serving `model`. Raises InvalidRequest where nothing is left to answer.

        `default_output_tokens` limits each sequence where the client sets no limit; engines cut it to what the prompt
        leaves of the context.
        """
        kept = {**self.kept, "model": model}
        dialect = self.dialect
        is_streamed = dialect.stream is not None and kept.get("stream") is True
        options: StreamOptions = kept.pop("stream_options", StreamOptions())
        dialect.recall(kept, keeper)
        limit_field = dialect.limit_field(kept)
        asked = msgspec.structs.replace(dialect.ask(kept), echoed=self.echoed, keeper=keeper)
        is_assembled = not is_streamed and dialect.assembly is not None and asked.needs_stream
        if is_assembled:
            kept["stream"] = True
        if (is_streamed or is_assembled) and isinstance(dialect.stream, ChunkStream):
            # Usage in every chunk: a stream that is cut is billed as of its last chunk.
            kept["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        if dialect.takes_cache_salt:
            kept["cache_salt"] = cache_salt
        default = min((it for it in (default_output_tokens, dialect.default_output_tokens) if it), default=None)
        if dialect.default_limit_field and default and dialect.output_limit(kept) is None:
            # Not below what the client wants at least: an engine refuses that.
            kept[dialect.default_limit_field] = max(default, kept.get("min_tokens", 0))
        dialect.complete(kept)
        choices = kept.get("n", 1)
        return Call(
            dialect=dialect,
            model=model,
            body=msgspec.json.encode(kept),
            is_streamed=is_streamed,
            is_assembled=is_assembled,
            wants_usage=options.include_usage is True,
            # As in the engine: usage in every chunk comes only with usage at the end.
            wants_continuous_usage=options.include_usage is True and options.continuous_usage_stats is True,
            sequences=choices * dialect.prompts(kept),
            choices=choices,
            output_tokens_max=dialect.output_limit(kept),
            limit_field=limit_field,
            asked=asked,
            prefix=conversation.blocks(dialect.conversation(kept), f"{cache_salt} {model}"),
        )


def _listed(names: list[str]) -> str:
    """The names, or as many of the first as a header takes and how many more there are."""
    ends = accumulate(len(name) + len(", ") for name in names)
    count = sum(end <= LEFT_OUT_CHARS_MAX for end in ends)
    more = [f"{len(names) - count} more"] if count < len(names) else []
    return ", ".join(names[:count] + more)


def read(dialect: Dialect, raw: bytes, rights: Set[Right] = frozenset()) -> Draft:
    """Parse and check a body of a key with these rights; raises InvalidRequest and its kinds."""
    return checked(dialect, decoded(raw), rights)


def decoded(raw: bytes) -> Body:
    """The JSON object that a body is; raises InvalidRequest."""
    body = _decode(raw)
    if not isinstance(body, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return body


def checked(dialect: Dialect, body: Body, rights: Set[Right] = frozenset()) -> Draft:
    """Check a body that was parsed; raises InvalidRequest and its kinds."""
    sifted = fields.sift(dialect.fields, body, rights)
    kept = sifted.kept
    dialect.check(body, kept)
    left_out = [*sifted.left_out, *dialect.adapt(kept)]
    # Copied before schemas are fitted: that changes what the body shares.
    echoed = copy.deepcopy({name: body[name] for name in dialect.echoed if _says(dialect, name, body.get(name))})
    left_out += constraints.fit({name: kept[name] for name in _SCHEMA_FIELDS & kept.keys()})
    return Draft(dialect, kept["model"], kept, tuple(left_out), echoed)


def _says(dialect: Dialect, name: str, value: Any) -> bool:
    """Has a field's value a meaning that its answer repeats? Null and empty ones count as absent."""
    return value is not None and not dialect.fields[name].asks_for_nothing(value)


def _decode(raw: bytes) -> Any:
    structure.require_modest(raw)
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("We could not parse the JSON body of your request.") from None
    except RecursionError:
        raise InvalidRequest(f"The JSON body is nested deeper than {NESTING_MAX} levels.") from None
    if raw.count(b"[") + raw.count(b"{") > NESTING_MAX and structure.is_deeper_than(body, NESTING_MAX):
        raise InvalidRequest(f"The JSON body is nested deeper than {NESTING_MAX} levels.")
    return body
