"""Pieces: pieces in a folder or in S3, sealed, each at its place alone."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.config import FileSettings
from serving.errors import ContentLost, Refusal, StoreUnavailable, VaultFailed
from serving.gateway.stored.files.pieces import PIECE_BYTES, Cipher, Pieces
from serving.gateway.stored.vault import own_key
from tests.clients import environments
from tests.gateway.test_server import free_port

BUCKET = "s3://night/serving"
ONE, OTHER = Cipher("t", "file-1", own_key()), Cipher("t", "file-2", own_key())


def shelf_at(home: Path, **settings: object) -> Pieces:
    return Pieces.open(FileSettings(**settings), home)  # type: ignore[arg-type]


@contextmanager
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """moto's server, with the bucket; the environment says where it is, as it does for any client of S3."""
    port = free_port()
    line = [str(environments.python("s3")), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    said = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1", "ENDPOINT": address}
    for name, value in (said | {"ALLOW_HTTP": "true"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    try:
        deadline = time.monotonic() + 60
        while not _has_bucket(f"{address}/night"):
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()


def _has_bucket(address: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="PUT")) as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError:
        return False


async def kept_and_removed(shelf: Pieces) -> None:
    """Pieces come back in their order; one that is put again replaces the first; nothing is left of what is removed."""
    pieces = [bytes([number]) * PIECE_BYTES for number in range(3)]
    for number, piece in enumerate(pieces):
        await shelf.put(ONE, number, piece)
    await shelf.put(OTHER, 0, b"another")
    assert [it async for it in shelf.pieces(ONE, 3)] == pieces
    await shelf.put(ONE, 1, b"again")
    assert await shelf.get(ONE, 1) == b"again"
    await shelf.remove("file-1")
    await shelf.remove("file-1")
    with pytest.raises(ContentLost):
        await shelf.get(ONE, 0)
    assert await shelf.get(OTHER, 0) == b"another"


async def test_a_folder_keeps_pieces(tmp_path: Path) -> None:
    """By default one in the home folder, for this user alone."""
    await kept_and_removed(shelf_at(tmp_path))
    assert os.stat(tmp_path / "files").st_mode & 0o777 == 0o700


@pytest.mark.long  # It installs moto.
async def test_s3_keeps_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket and a prefix in it, with the environment's credentials."""
    with s3(monkeypatch):
        await kept_and_removed(shelf_at(tmp_path, url=BUCKET))
        # A bucket in which there is nothing at all, or that is none, is a wrong one: no file is lost for that.
        for wrong in ("s3://night/elsewhere", "s3://no-such-bucket"):
            with pytest.raises(StoreUnavailable):
                await shelf_at(tmp_path, url=wrong).get(ONE, 0)
    with pytest.raises(StoreUnavailable):
        await shelf_at(tmp_path, url=BUCKET).put(ONE, 0, b"to a server that has gone")


async def test_a_piece_opens_at_its_own_place_alone(tmp_path: Path) -> None:
    """Put at another number, file or tenant by hand, or with another file's key, it is nothing."""
    shelf = shelf_at(tmp_path)
    await shelf.put(ONE, 0, b"secret")
    path = tmp_path / "files" / "file-1" / "00000000"
    sealed = path.read_bytes()
    assert b"secret" not in sealed
    path.with_name("00000001").write_bytes(sealed)
    others = (Cipher("other", "file-1", ONE.key), 0), (Cipher("t", "file-1", OTHER.key), 0)
    for cipher, number in ((ONE, 1), *others):
        with pytest.raises(VaultFailed):
            await shelf.get(cipher, number)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """Before the gateway starts, in a sentence."""
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="cannot keep files: not a directory"):
        shelf_at(tmp_path, folder=tmp_path / "file" / "below")
