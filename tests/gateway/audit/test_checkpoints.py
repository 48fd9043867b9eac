"""Checkpoints: signed by one installation, and found again wherever they were kept."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from serving.errors import Refusal
from serving.gateway.audit.checkpoints import Checkpoint, found_in, is_genuine, name_of, pem, read, trusted_in, written
from tests.gateway.audit.chains import OTHER_SIGNER, SIGNER, Written

TRUSTED = [SIGNER.public_key]


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Written().sign()


def test_a_checkpoint_is_its_signers(checkpoint: Checkpoint) -> None:
    """Another installation's key says nothing of it."""
    assert is_genuine(checkpoint, [OTHER_SIGNER.public_key, *TRUSTED])
    assert not is_genuine(checkpoint, [OTHER_SIGNER.public_key])
    assert not is_genuine(checkpoint, [])


@pytest.mark.parametrize(
    "changed",
    [
        {"writer": "gateway:b"},
        {"number": 2},
        {"number": -1},
        {"digest": "00" * 32},
        {"digest": "no digest"},
        {"written_at_us": 0},
        {"signed_at_us": 0},
        {"signature": ""},
        {"signature": "no signature"},
        {"key": "0000"},
    ],
    ids=str,
)
def test_what_was_changed_in_it_is_not_genuine(checkpoint: Checkpoint, changed: dict[str, Any]) -> None:
    """The signature covers each field."""
    assert not is_genuine(msgspec.structs.replace(checkpoint, **changed), TRUSTED)


def test_checkpoints_are_found_where_they_were_kept(checkpoint: Checkpoint) -> None:
    """In a file of them, and in a log, as JSON and as text; other lines are passed over."""
    line = written(checkpoint)
    logged = json.dumps({"time_s": 1.0, "level": "info", "logger": "serving.audit", "message": line})
    text = f"2026-11-29 09:00:00,000 INFO serving.audit {line}"
    lines = [f"{it}\n".encode() for it in (line, logged, text, "starting", '{"message": "hello"}', "")] + [b"\xff\n"]
    assert list(found_in(lines)) == [checkpoint] * 3


def test_what_is_no_checkpoint_is_none() -> None:
    """Other JSON, and what is no text."""
    assert read("{}") is None
    assert read(b"\xff") is None


def test_public_keys_are_read_as_they_are_printed() -> None:
    """One after another: a new pepper's beside the ones before it."""
    both = pem(SIGNER.public_key) + pem(OTHER_SIGNER.public_key)
    assert [name_of(key) for key in trusted_in(both.encode())] == [
        name_of(key) for key in (SIGNER.public_key, OTHER_SIGNER.public_key)
    ]


@pytest.mark.parametrize("text", [b"", b"a key\n", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_a_file_without_a_key_is_refused(text: bytes) -> None:
    """With a sentence that says what belongs there."""
    with pytest.raises(Refusal, match="must hold what `serving audit key` printed"):
        trusted_in(text)
