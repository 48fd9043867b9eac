"""Checkpoints: signed statements of how far a chain has come, to be kept where those who can write the database cannot.

Ed25519 over a fixed word, the writer, the number, the digest, when that entry was written and when it was signed, each behind its
length as in a chain. The key is derived from the pepper: all gateways and commands of an installation have the same, and the database
alone cannot make one (TEN-28).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from serving.errors import Refusal
from serving.gateway.audit.chain import Entry, framed, integer

#: What the signing key is derived for.
PURPOSE = b"audit checkpoints"
#: Hexadecimal digits by which people tell keys apart.
KEY_NAME_LENGTH = 16

_FORMAT = b"gpt-oss-serving audit checkpoint 1"


class Checkpoint(msgspec.Struct, frozen=True, tag_field="kind", tag="audit_checkpoint"):
    """`writer` had written `number` entries, and the last one's digest was this."""

    writer: str
    number: int
    #: Hexadecimal, as the signature.
    digest: str
    #: When that entry was written.
    written_at_us: int
    signed_at_us: int
    #: The beginning of the public key's SHA-256.
    key: str
    signature: str


class Signer:
    """Signs for one installation."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key: Ed25519PublicKey = self._key.public_key()
        self._name = name_of(self.public_key)

    def sign(self, entry: Entry, signed_at_us: int) -> Checkpoint:
        """The chain has come to `entry`."""
        unsigned = Checkpoint(
            entry.writer, entry.number, entry.digest.hex(), entry.written_at_us, signed_at_us, self._name, ""
        )
        return msgspec.structs.replace(unsigned, signature=self._key.sign(_statement(unsigned)).hex())


def pem(key: Ed25519PublicKey) -> str:
    """As files have it."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def name_of(key: Ed25519PublicKey) -> str:
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:KEY_NAME_LENGTH]


def is_genuine(checkpoint: Checkpoint, trusted: Collection[Ed25519PublicKey]) -> bool:
    """Was it signed with one of these keys?"""
    try:
        signature, statement = bytes.fromhex(checkpoint.signature), _statement(checkpoint)
    except (ValueError, OverflowError):
        return False
    return any(_is_of(key, signature, statement) for key in trusted if name_of(key) == checkpoint.key)


def written(checkpoint: Checkpoint) -> str:
    """One line of JSON."""
    return msgspec.json.encode(checkpoint).decode()


def read(text: str | bytes) -> Checkpoint | None:
    """A line's checkpoint; None for what is none."""
    try:
        return msgspec.json.decode(text, type=Checkpoint)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def found_in(lines: Iterable[bytes]) -> Iterator[Checkpoint]:
    """The checkpoints in a file of them, or among the lines of a gateway's log, as JSON or as text."""
    for line in lines:
        checkpoint = read(line) or read(_message(line))
        if checkpoint is not None:
            yield checkpoint


def trusted_in(text: bytes) -> list[Ed25519PublicKey]:
    """The public keys of a PEM file, one after another. Raises Refusal where there is none."""
    keys = []
    for block in text.split(b"-----END PUBLIC KEY-----")[:-1]:
        try:
            key = load_pem_public_key(block.strip() + b"\n-----END PUBLIC KEY-----\n")
        except ValueError:
            raise _no_key() from None
        if not isinstance(key, Ed25519PublicKey):
            raise _no_key()
        keys.append(key)
    if not keys:
        raise _no_key()
    return keys


class _LogLine(msgspec.Struct):
    message: str


def _message(line: bytes) -> bytes:
    """What a log line says."""
    try:
        return msgspec.json.decode(line, type=_LogLine).message.encode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return line[at:].strip() if (at := line.find(b'{"kind":"audit_checkpoint"')) >= 0 else b""


def _statement(checkpoint: Checkpoint) -> bytes:
    """What is signed; raises ValueError or OverflowError where that is none."""
    digest, number = bytes.fromhex(checkpoint.digest), integer(checkpoint.number)
    moments = integer(checkpoint.written_at_us), integer(checkpoint.signed_at_us)
    return framed(_FORMAT, checkpoint.writer.encode(), number, digest, *moments)


def _is_of(key: Ed25519PublicKey, signature: bytes, statement: bytes) -> bool:
    try:
        key.verify(signature, statement)
    except InvalidSignature:
        return False
    return True


def _no_key() -> Refusal:
    return Refusal("The file of public keys must hold what `serving audit key` printed, one key after another.")
