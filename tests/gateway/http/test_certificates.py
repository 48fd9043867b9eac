"""Certificates are renewed under a gateway that runs: connections from then on see the new one."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from pathlib import Path

import pytest

from serving.config import PlaneTls
from serving.errors import Refusal
from serving.gateway.http import certificates
from tests.certificates import issue
from tests.gateway.test_server import free_port, served
from tests.gateway.world import until
from tests.scripted_engine import ScriptedEngine

NAME = "api.example.com"
LOOK_S = 0.01


def issued(folder: Path) -> PlaneTls:
    folder.mkdir()
    return issue(folder, NAME)


def put(files: PlaneTls, place: PlaneTls) -> None:
    """What a Secret's volume does when the Secret changes."""
    for name in ("ca_file", "certificate_file", "key_file"):
        target: Path = getattr(place, name)
        shutil.copy(getattr(files, name), target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)


def der(path: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text())


async def seen(port: int) -> bytes:
    """The certificate that the server shows to one that trusts anybody."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=NAME)
    certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(True)
    writer.close()
    return certificate


async def until_seen(port: int, certificate: Path) -> None:
    """Wait until the server shows this one."""
    async with asyncio.timeout(60):
        while await seen(port) != der(certificate):  # noqa: ASYNC110 Another process's doing.
            await asyncio.sleep(0.2)


async def test_a_running_gateway_shows_a_renewed_certificate(tmp_path: Path) -> None:
    """No restart, and no client that would meet an expired one."""
    files, other, port = issued(tmp_path / "tls"), issued(tmp_path / "other"), free_port()
    settings = {
        "SERVING_GATEWAY__TLS__CERTIFICATE_FILE": str(files.certificate_file),
        "SERVING_GATEWAY__TLS__KEY_FILE": str(files.key_file),
    }
    async with ScriptedEngine() as engine, served(tmp_path, port, engine.url, **settings):
        assert await seen(port) == der(files.certificate_file)
        put(other, files)
        await until_seen(port, other.certificate_file)


async def test_files_that_do_not_belong_together_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of a renewal, or something else: the one before is shown, a warning says why, and the whole one is taken."""
    files, other = issued(tmp_path / "tls"), issued(tmp_path / "other")
    before = der(files.certificate_file)
    loaded = certificates.shown(files)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=loaded.context)
    port = server.sockets[0].getsockname()[1]
    following = asyncio.create_task(certificates.follow([loaded], LOOK_S))
    await asyncio.sleep(0)  # it has seen the files as they are

    for half in (other.key_file.read_bytes(), b"no key"):
        caplog.clear()
        files.key_file.write_bytes(half)
        await until(lambda: "what was read before stays" in caplog.text)
        assert await seen(port) == before
    put(other, files)
    await until_seen(port, other.certificate_file)
    following.cancel()
    server.close()


async def test_what_was_renewed_before_they_are_followed_is_loaded_at_once(tmp_path: Path) -> None:
    """A process that begins later has a context from before: it must not wait for the renewal after that."""
    files, other = issued(tmp_path / "tls"), issued(tmp_path / "other")
    loaded = certificates.trusted(files)
    put(other, files)
    following = asyncio.create_task(certificates.follow([loaded], look_s=600))
    await asyncio.sleep(0)
    assert len(loaded.context.get_ca_certs()) == 2
    following.cancel()


async def test_files_that_are_away_for_a_while_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From the beginning on, or between two looks: what was read serves on, and what comes back is taken."""
    files, other = issued(tmp_path / "tls"), issued(tmp_path / "other")
    loaded = certificates.trusted(files)
    files.ca_file.unlink()
    following = asyncio.create_task(certificates.follow([loaded], LOOK_S))
    await asyncio.sleep(0)

    put(other, files)
    await until(lambda: len(loaded.context.get_ca_certs()) == 2)
    files.ca_file.unlink()
    await until(lambda: "what was read before stays" in caplog.text)
    assert not following.done()
    following.cancel()


async def test_a_new_authority_of_the_engine_plane_is_trusted(tmp_path: Path) -> None:
    """Beside the one before: engines change one after the other."""
    files, other = issued(tmp_path / "tls"), issued(tmp_path / "other")
    loaded = certificates.trusted(files)
    following = asyncio.create_task(certificates.follow([loaded], LOOK_S))
    await asyncio.sleep(0)
    put(other, files)

    await until(lambda: {der(files.ca_file)} < set(loaded.context.get_ca_certs(True)))
    assert len(loaded.context.get_ca_certs()) == 2
    following.cancel()


@pytest.mark.parametrize(("content", "words"), [(None, "no such file"), (b"no PEM", "no certificate and its key")])
def test_a_certificate_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    """Before anything listens."""
    files = issued(tmp_path / "tls")
    files.key_file.unlink()
    if content is not None:
        files.key_file.write_bytes(content)
    with pytest.raises(Refusal, match=words):
        certificates.shown(files)
