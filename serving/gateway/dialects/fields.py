"""Fields: what may happen to a request field, and the sieve that a body goes through. Unlisted fields are unknown: a 400.

Asked of each extension of the engine: can it hurt another tenant or the operator, or show what is not the client's?
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from serving.errors import InvalidRequest, UnknownParameter, UnsupportedParameter
from serving.gateway.dialects.checks import Check


class Disposition(StrEnum):
    HONOURED = "honoured"
    #: Accepted and checked, not sent on.
    IGNORED = "ignored"
    REFUSED = "refused"


class Field(msgspec.Struct, frozen=True):
    """What happens to one field, and why or within which bounds."""

    disposition: Disposition
    note: str
    check: Check | None = None
    is_required: bool = False


def honoured(note: str, check: Check, *, is_required: bool = False) -> Field:
    return Field(Disposition.HONOURED, note, check, is_required)


def ignored(reason: str, check: Check | None = None) -> Field:
    return Field(Disposition.IGNORED, reason, check)


def refused(reason: str) -> Field:
    return Field(Disposition.REFUSED, reason)


Table = Mapping[str, Field]


def sift(table: Table, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields to send on, checked; null counts as absent, as it does at OpenAI.

    Raises UnknownParameter, UnsupportedParameter or InvalidRequest for the first field at fault.
    """
    kept: dict[str, Any] = {}
    for name, value in body.items():
        field = table.get(name)
        if field is None:
            raise UnknownParameter(name[:128])
        if value is None:
            continue
        if field.disposition is Disposition.REFUSED:
            raise UnsupportedParameter(f"Unsupported parameter: '{name}'. {field.note}", param=name)
        checked = field.check(name, value) if field.check else value
        if field.disposition is Disposition.HONOURED:
            kept[name] = checked
    for name, field in table.items():
        if field.is_required and name not in kept:
            raise InvalidRequest(f"Missing required parameter: '{name}'.", param=name)
    return kept
