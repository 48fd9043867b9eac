"""OpenAPI: the document of everything that this gateway answers, made from what answers it: the table of routes, the fields of each dialect,
the keys of their answers, and the document of `/admin/v1`. What is in none of them cannot be said here (CON-8).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import msgspec

from serving.gateway.answers import documented
from serving.gateway.dialects import DIALECTS, speaks_anthropic
from serving.gateway.dialects.checks import OfKind
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.dialects.fields import Disposition, Field
from serving.gateway.http.bodies import AnthropicBody, OpenAIBody
from serving.gateway.http.routing import ANY, About, Entry

PATH = "/openapi.json"

#: A decision that a note cites: its page is not here.
_CITED = re.compile(r" \(\[[A-Z0-9]+-\d+\]\([^)]*\)\)")

#: Names that stand in a path.
_NAMES = re.compile(r"\{([a-z_]+)\}")

Document = dict[str, Any]

_ABOUT = (
    "What this gateway answers. Send a key, or a token of single sign-on, as `Authorization: Bearer …`, or as `x-api-key`.\n\n"
    "In request bodies null counts as absent everywhere, a field that is not listed here is refused with 400 `unknown_parameter`, and one "
    "that is `left out` is named in the header `x-left-out`. Answers have the keys that are listed, and may lack those that do not apply."
)

_TAGS = {
    "inference": "Calls that an engine answers.",
    "stored": "What is stored of responses and conversations, for tenants that have that.",
    "batches": "Files of calls that are run on spare capacity, for tenants that store content.",
    "models": "Which models there are.",
    "administration": "Tenants, keys, policies, prices, usage, audit, and what is now.",
    "console": "The page, and who is signed in to it: for that page alone.",
    "service": "What probes and this document ask.",
}
_LEFT_OUT = {"description": "Fields and tools that were left out.", "schema": {"type": "string"}}
#: Keys whose values are lists of what the shapes of answers say.
_LISTS = frozenset({"choices", "tool_calls", "output", "content", "summary", "data"})
#: Of chunks of a stream alone.
_OF_STREAMS = frozenset({"delta"})


def document(entries: Iterable[Entry[Any]], administration: Document) -> Document:
    """OpenAPI 3.1, of these routes and of what `administration` says of its own."""
    table = list(entries)
    schemas = _Schemas(table)
    paths: Document = {}
    for entry in table:
        if entry.method != ANY:
            paths.setdefault(entry.path, {})[entry.method.lower()] = _operation(entry, schemas)
    for path, operations in administration["paths"].items():
        paths[path] = {method: operation | {"tags": ["administration"]} for method, operation in operations.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gpt-oss-serving", "version": version("gpt-oss-serving"), "description": _ABOUT},
        "tags": [{"name": name, "description": said} for name, said in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas.components | administration["components"]["schemas"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


class _Schemas:
    """JSON schemas of all that the table's routes read and write; those with a name are components."""

    def __init__(self, table: Sequence[Entry[Any]]) -> None:
        self._kinds: list[Any] = [OpenAIBody, AnthropicBody]
        for dialect in DIALECTS.values():
            if _keys(dialect) is None:
                self._kinds.append(dialect.answer)
            self._kinds += [kind for field in dialect.fields.values() if (kind := _kind(field)) is not None]
        for about in (entry.about for entry in table if entry.about):
            self._kinds += [kind for kind in (about.body, about.answer) if kind is not None]
        template = "#/components/schemas/{name}"
        self._schemas, self.components = msgspec.json.schema_components(
            self._kinds, schema_hook=_anything, ref_template=template
        )

    def of(self, kind: Any) -> Document:
        """That of a kind, `{}` where anything is taken."""
        # Types need not be hashable: their places are looked for.
        return {} if kind is None else dict(self._schemas[self._kinds.index(kind)])


def _anything(kind: type) -> Document:
    """`object`, of which msgspec has no schema, and takes none without a word."""
    return {"description": "Anything."}


def _kind(field: Field) -> Any:
    return field.check.kind if isinstance(field.check, OfKind) else None


def _operation(entry: Entry[Any], schemas: _Schemas) -> Document:
    dialect = DIALECTS.get(entry.path) if entry.method == "POST" else None
    said = _inference(dialect, schemas) if dialect else _plain(entry, schemas)
    words = "_".join(re.split(r"[^a-z0-9]", entry.path.strip("{}").lower()))
    return {"operationId": f"{entry.method.lower()}{words}", **said}


def _plain(entry: Entry[Any], schemas: _Schemas) -> Document:
    about = entry.about
    if about is None:
        raise LookupError(f"{entry.method} {entry.path} does not say what it is about")
    parameters = [_of_query(name, said) for name, said in about.query.items()]
    parameters += [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _NAMES.findall(entry.path)
    ]
    said: Document = {
        "tags": [about.tag],
        "summary": about.summary,
        "responses": _responses(entry.path, about, schemas),
    }
    if parameters:
        said["parameters"] = parameters
    if about.body is not None:
        said["requestBody"] = {"required": True, "content": {"application/json": {"schema": schemas.of(about.body)}}}
    return said | ({"security": []} if about.is_open else {})


def _of_query(name: str, said: str) -> Document:
    return {"name": name, "in": "query", "description": said, "schema": {"type": "string"}}


def _responses(path: str, about: About, schemas: _Schemas) -> Document:
    answered: Document = {"description": about.summary}
    if about.status == 200:
        answered["content"] = {about.content_type: {"schema": _answer_schema(about, schemas)}}
    return {str(about.status): answered, **_errors(path, schemas)}


def _answer_schema(about: About, schemas: _Schemas) -> Document:
    return schemas.of(about.answer) if about.content_type == "application/json" else {"type": "string"}


def _inference(dialect: Dialect, schemas: _Schemas) -> Document:
    answered: Document = {
        "description": "The whole answer, or with `stream` its events." if dialect.stream else "The answer.",
        "headers": {"x-left-out": _LEFT_OUT},
        "content": {"application/json": {"schema": _answer(dialect, schemas)}},
    }
    if dialect.stream:
        answered["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    user = {"name": "X-Serving-User", "in": "header", "schema": {"type": "string"}}
    user["description"] = "Who the end user is, from a service before many people whose key may say so."
    return {
        "tags": ["inference"],
        "summary": dialect.summary,
        "parameters": [user],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _request(dialect, schemas)}}},
        "responses": {"200": answered, **_errors(dialect.path, schemas)},
    }


def _request(dialect: Dialect, schemas: _Schemas) -> Document:
    taken = {name: it for name, it in dialect.fields.items() if is_taken(it)}
    return {
        "type": "object",
        "properties": {name: _property(field, schemas) for name, field in taken.items()},
        "required": [name for name, field in taken.items() if field.is_required],
        "additionalProperties": False,
    }


def is_taken(field: Field) -> bool:
    """May some key send it?"""
    return field.disposition is not Disposition.REFUSED or field.right is not None or field.is_stored


def _property(field: Field, schemas: _Schemas) -> Document:
    schema = schemas.of(_kind(field))
    word = "" if field.disposition in (Disposition.HONOURED, Disposition.REFUSED) else f"{field.disposition}: "
    return {**schema, "description": f"{word}{_CITED.sub('', field.note)}", "x-disposition": str(field.disposition)}


def _answer(dialect: Dialect, schemas: _Schemas) -> Document:
    keys = _keys(dialect)
    return schemas.of(dialect.answer) if keys is None else _shape(keys)


def _keys(dialect: Dialect) -> documented.Shape | None:
    """The keys that its answers are let through with."""
    return getattr(dialect.shaper, "shape", None)


def _shape(shape: documented.Shape) -> Document:
    """What an answer may hold, from the keys that are let through."""
    return {
        "type": "object",
        "properties": {name: _value(name, inner) for name, inner in shape.items() if name not in _OF_STREAMS},
    }


def _value(name: str, inner: documented.Shape | None) -> Document:
    if inner is None:
        return {}
    schema = _shape(inner)
    found: Document = {"type": "array", "items": schema} if name in _LISTS else schema
    # What does not apply may be null.
    return {"anyOf": [found, {"type": "null"}]}


def _errors(path: str, schemas: _Schemas) -> Document:
    body = AnthropicBody if speaks_anthropic(path, None) else OpenAIBody
    content = {"application/json": {"schema": schemas.of(body)}}
    return {
        "4XX": {"description": "Refused.", "content": content},
        "5XX": {"description": "Not possible now.", "content": content},
    }
