"""Seal: a text comes back to its own tenant, for a while, from any gateway of the installation, and to no other."""

from __future__ import annotations

import base64

import pytest

from serving.gateway.answers.seal import SEALED_S, Seal
from tests.clock import Clock

KEY = bytes(32)
TEXT = "I should look it up. 42 ≠ 41"


def test_what_one_gateway_sealed_another_opens() -> None:
    """They share the key; the text is not readable on the way, and no two sealings are alike."""
    one, other = Seal(KEY, Clock()), Seal(KEY, Clock())
    sealed = one.seal("t1", TEXT)
    assert other.open("t1", sealed) == TEXT and sealed != one.seal("t1", TEXT)
    assert b"look" not in base64.urlsafe_b64decode(sealed)


def test_no_other_tenant_and_no_other_installation_opens_it() -> None:
    """The tenant is bound to it; a key of another pepper is another key."""
    sealed = Seal(KEY, Clock()).seal("t1", TEXT)
    assert Seal(KEY, Clock()).open("t2", sealed) is None
    assert Seal(bytes(31) + b"\1", Clock()).open("t1", sealed) is None


def test_it_opens_for_a_while() -> None:
    """And not a second longer."""
    clock = Clock()
    seal = Seal(KEY, clock)
    sealed = seal.seal("t1", TEXT)
    clock.advance(SEALED_S - 1)
    assert seal.open("t1", sealed) == TEXT
    clock.advance(1)
    assert seal.open("t1", sealed) is None


@pytest.mark.parametrize("forged", ["", "x", "AAAA", "é", "A" * 4096, "gAAAAABm" * 20, "a b", "\ud800"])
def test_what_was_not_sealed_here_is_none(forged: str) -> None:
    """Another service's, damaged or made up: never an error."""
    assert Seal(KEY, Clock()).open("t1", forged) is None


def test_a_sealed_text_that_was_changed_is_none() -> None:
    """In any byte."""
    seal = Seal(KEY, Clock())
    raw = bytearray(base64.urlsafe_b64decode(seal.seal("t1", TEXT)))
    for place in range(len(raw)):
        raw[place] ^= 1
        assert seal.open("t1", base64.urlsafe_b64encode(bytes(raw)).decode()) is None
        raw[place] ^= 1
