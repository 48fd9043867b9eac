"""Fields: what may happen to a request field, and the sieve that a body goes through. Unlisted fields are unknown: a 400.

Asked of each extension of the engine: can it hurt another tenant or the operator, or show what is not the client's?
Asked of each field that cannot be served: does it change what the answer means? If it does, it is refused; if it does not
(a label, a hint, an empty value), the client gets its answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import StrEnum
from typing import Any

import msgspec

from serving.errors import InvalidRequest, UnknownParameter, UnsupportedParameter
from serving.gateway.dialects.checks import Check
from serving.gateway.nouns import Right


class Disposition(StrEnum):
    HONOURED = "honoured"
    #: Accepted and checked, not sent on.
    IGNORED = "ignored"
    #: Accepted and not sent on; the answer's header names it.
    LEFT_OUT = "left out"
    REFUSED = "refused"


class Field(msgspec.Struct, frozen=True):
    """What happens to one field, and why or within which bounds."""

    disposition: Disposition
    note: str
    check: Check | None = None
    is_required: bool = False
    #: An honoured field whose empty value says something. Elsewhere "", [] and {} count as absent.
    takes_empty: bool = False
    #: Values of a refused field that ask for what happens anyway, besides null, false and what is empty.
    neutral: tuple[Any, ...] = ()
    #: The error of a refused field.
    error: type[UnsupportedParameter] = UnsupportedParameter
    #: The right with which a key has this refused field honoured.
    right: Right | None = None
    #: A tenant that has responses stored has it honoured, before this is asked.
    is_stored: bool = False

    def asks_for_nothing(self, value: Any) -> bool:
        """Would leaving the field out be the same request?"""
        if _is_empty(value):
            return not (self.is_required or self.takes_empty)
        if self.disposition is Disposition.HONOURED:
            return False
        return value is False or any(_is_same(value, it) for it in self.neutral)


def _is_same(value: Any, other: Any) -> bool:
    """Are these the same JSON? true is not 1, and 1.0 is."""
    return isinstance(value, bool) is isinstance(other, bool) and bool(value == other)


def _is_empty(value: Any) -> bool:
    return isinstance(value, str | list | dict) and not value


def honoured(note: str, check: Check, *, is_required: bool = False, takes_empty: bool = False) -> Field:
    return Field(Disposition.HONOURED, note, check, is_required, takes_empty)


def ignored(reason: str, check: Check | None = None) -> Field:
    return Field(Disposition.IGNORED, reason, check)


def left_out(reason: str, *, takes_empty: bool = False) -> Field:
    return Field(Disposition.LEFT_OUT, reason, takes_empty=takes_empty)


def refused(reason: str, *neutral: object, error: type[UnsupportedParameter] = UnsupportedParameter) -> Field:
    return Field(Disposition.REFUSED, reason, neutral=neutral, error=error)


def granted(right: Right, reason: str, check: Check) -> Field:
    """Refused, but for keys that have the right."""
    note = f"{reason} A key has it honoured that an operator made with `--allow {right}`."
    return Field(Disposition.REFUSED, note, check, right=right)


def remembered(reason: str) -> Field:
    """Refused, but for tenants that have responses stored."""
    note = f"{reason} A tenant has it honoured whose policy says `store_responses`."
    return Field(Disposition.REFUSED, note, is_stored=True)


Table = Mapping[str, Field]


class Sifted(msgspec.Struct, frozen=True):
    """The fields to send on, and the names of those that the answer's header says were left out."""

    kept: dict[str, Any]
    left_out: list[str]


def sift(table: Table, body: Mapping[str, Any], rights: Set[Right] = frozenset()) -> Sifted:
    """The fields to send on for a key with these rights, checked; null counts as absent, as it does at OpenAI, and
    so does an empty value of a field that nothing here knows.

    Raises UnknownParameter, UnsupportedParameter or InvalidRequest for the first field at fault.
    """
    sifted = Sifted({}, [])
    for name, value in body.items():
        if value is None:
            continue
        field = table.get(name)
        if field is None and _is_empty(value):
            continue
        if field is None:
            raise UnknownParameter(name[:128])
        _sift(name, value, field, rights, sifted)
    for name, field in table.items():
        if field.is_required and name not in sifted.kept:
            raise InvalidRequest(f"Missing required parameter: '{name}'.", param=name)
    return sifted


def _sift(name: str, value: Any, field: Field, rights: Set[Right], sifted: Sifted) -> None:
    match field.disposition:
        case _ if field.asks_for_nothing(value):
            return
        case Disposition.IGNORED:
            if field.check:
                field.check(name, value)
        case Disposition.REFUSED if field.right in rights:
            sifted.kept[name] = field.check(name, value) if field.check else value
        case Disposition.REFUSED:
            raise field.error(f"Unsupported parameter: '{name}'. {field.note}", param=name)
        case Disposition.LEFT_OUT:
            sifted.left_out.append(name)
        case Disposition.HONOURED:
            sifted.kept[name] = field.check(name, value) if field.check else value
