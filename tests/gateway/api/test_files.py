"""Files as the official client sees them, and what is kept of them where."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from serving.gateway.policies import Policy
from serving.gateway.stored.files.files import brought_by
from serving.gateway.stored.files.pieces import MARKER, PIECE_BYTES
from tests.gateway.world import FILES, World, running_gateway, slow_reader, until
from tests.scripted_engine import ScriptedEngine

STORES = Policy(store_responses=True)
CANARY = b'{"custom_id": "a canary that must not be seen"}\n'


def seen_at_rest(home: Path, word: bytes) -> list[Path]:
    """The files of a gateway, its database and log of it included, that have a word in the clear."""
    kept = [path for path in home.rglob("*") if path.is_file()]
    assert len(kept) > 3
    return [path for path in kept if word in path.read_bytes()]


def client_of(world: World, key: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{world.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
async def client(world: World) -> AsyncIterator[AsyncOpenAI]:
    await world.bound(STORES)
    async with client_of(world, world.key) as client:
        yield client


async def test_a_file_is_kept_as_it_was_sent(client: AsyncOpenAI, world: World, tmp_path: Path) -> None:
    """Uploaded, shown, listed, read and deleted, larger than a piece; neither its bytes nor its name are in the clear at rest."""
    content = CANARY * (2 * PIECE_BYTES // len(CANARY) + 1)
    made = await client.files.create(
        file=("secret-name.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    shown = await client.files.retrieve(made.id)

    assert shown == made and (made.bytes, made.filename) == (len(content), "secret-name.jsonl")
    assert made.expires_at == made.created_at + 3600 and made.status == "processed"
    assert (await client.files.content(made.id)).content == content
    assert not seen_at_rest(tmp_path, b"canary") and not seen_at_rest(tmp_path, b"secret-name")

    assert (await client.files.delete(made.id)).deleted
    assert [it.name for it in (tmp_path / "files").rglob("*")] == [MARKER]
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            await ask(made.id)


async def test_files_are_listed_page_by_page(client: AsyncOpenAI) -> None:
    """The newest first, or the oldest; the client's own paging finds each once."""
    ids = [(await client.files.create(file=(f"{n}.jsonl", b"{}"), purpose="batch")).id for n in range(3)]

    page = await client.files.list(limit=2)
    assert [file.id for file in page.data] == ids[:0:-1] and page.has_more
    assert [file.id async for file in client.files.list(limit=1, order="asc")] == ids
    assert [file.id async for file in client.files.list(purpose="batch_output")] == []
    for wrong in ({"after": "file-x"}, {"limit": 0}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError):
            await client.files.list(**wrong)


async def test_another_tenants_file_is_not_there(client: AsyncOpenAI, world: World) -> None:
    """Its id opens nothing, in no way; and a tenant whose policy says nothing has no files at all."""
    made = await client.files.create(file=("a.jsonl", CANARY), purpose="batch")
    key = world.key_of_another("rival")

    async with client_of(world, key) as rival:
        with pytest.raises(openai.PermissionDeniedError, match="store_responses"):
            await rival.files.create(file=("b.jsonl", CANARY), purpose="batch")
        world.registry.update_tenant("rival", policy=STORES)
        while True:
            try:
                assert [file.id async for file in rival.files.list()] == []
                break
            except openai.PermissionDeniedError:
                continue
        for ask in (rival.files.retrieve, rival.files.content, rival.files.delete):
            with pytest.raises(openai.NotFoundError):
                await ask(made.id)
        with pytest.raises(openai.BadRequestError):
            await rival.files.list(after=made.id)
    assert (await client.files.content(made.id)).content == CANARY


async def test_a_download_that_is_not_read_ends(tmp_path: Path, engine: ScriptedEngine) -> None:
    """It would hold its place and memory among all calls for as long as its client liked."""
    async with running_gateway(tmp_path, (engine.url,), files=FILES.model_copy(update={"upload_s": 0.5})) as world:
        await world.bound(STORES)
        caller, files, size = await world.caller(), world.files, 3
        cipher = await files.begin(brought_by(caller, "a.jsonl"), size * PIECE_BYTES)
        for number in range(size):
            await files.shelf.put(cipher, number, b"x" * PIECE_BYTES)
        file = await files.finish(cipher, size * PIECE_BYTES, size)
        with slow_reader(world, f"/v1/files/{file.id}/content"):
            await until(lambda: any(it["reason"] == "request_timeout" for it in world.lines))


async def test_what_is_no_upload_is_refused_and_leaves_nothing(
    client: AsyncOpenAI, world: World, tmp_path: Path
) -> None:
    """Other purposes, other bodies, forms that break off, too many bytes."""
    with pytest.raises(openai.BadRequestError, match="purpose"):
        await client.files.create(file=("a.jsonl", CANARY), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="seconds"):
        await client.files.create(
            file=("a.jsonl", CANARY), purpose="batch", expires_after={"anchor": "created_at", "seconds": 5}
        )
    assert (await world.post("/v1/files", {"purpose": "batch"})).status == 400
    border = {"Content-Type": "multipart/form-data; boundary=x"} | world.headers()
    part = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    for body in (
        part % (b"purpose", b"batch"),
        part % (b"file", CANARY),
        part % (b"purpose", b"batch") + b"--x--\r\n",
        part % (b"odd", b"1") + b"--x--\r\n",
        b"nothing of the kind",
    ):
        assert (await world.ask("POST", "/v1/files", body, border)).status == 400
    too_large = b"x" * (world.files.settings.file_bytes_max + 1)
    with pytest.raises(openai.APIStatusError) as refused:
        await client.files.create(file=("a.jsonl", too_large), purpose="batch")
    assert refused.value.status_code == 413
    assert [file.id async for file in client.files.list()] == []
    assert [it.name for it in (tmp_path / "files").rglob("*")] == [MARKER]


async def test_a_tenant_keeps_so_many_files_and_bytes(client: AsyncOpenAI, world: World) -> None:
    """Beyond that its uploads are refused until it deletes some."""
    settings = world.files.settings
    size = settings.tenant_bytes_max // settings.tenant_files_max
    ids = [
        (await client.files.create(file=("a", b"x" * size), purpose="batch")).id
        for _ in range(settings.tenant_files_max)
    ]
    with pytest.raises(openai.BadRequestError) as refused:
        await client.files.create(file=("a", b"x"), purpose="batch")
    assert refused.value.code == "storage_limit_exceeded"
    await client.files.delete(ids[0])
    with pytest.raises(openai.BadRequestError):
        await client.files.create(file=("a", b"x" * (size + 1)), purpose="batch")
    await client.files.create(file=("a", b"x" * size), purpose="batch")


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/v1/files"), ("POST", "/v1/files/file-1"), ("DELETE", "/v1/files/f/content")]
)
async def test_other_methods_are_refused(client: AsyncOpenAI, world: World, method: str, path: str) -> None:
    """With the ones that are."""
    answer = await world.ask(method, path)
    assert answer.status == 405 and "GET" in answer.headers["allow"]
