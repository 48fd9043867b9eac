"""Batches as the official client sees them: a file of calls goes in, files of answers and errors come out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import openai
import pytest
from openai import AsyncOpenAI, types
from openai.types import Batch, BatchCreateParams, BatchError, BatchRequestCounts, FileListParams
from openai.types.batch import Errors

from serving.gateway.api.batches import BatchCard, BatchUsage, Counts, Faults, Wanted
from serving.gateway.api.files import FileCard, FileDeleted
from serving.gateway.api.lines import ENDPOINTS
from serving.gateway.policies import Policy
from serving.gateway.stored import estate
from serving.gateway.stored.batches.batches import Status
from serving.gateway.stored.batches.checking import Fault
from serving.gateway.stored.estate import Whose
from tests.gateway.api.test_files import client_of, seen_at_rest
from tests.gateway.world import World, until
from tests.scripted_engine import MODEL, Script, ScriptedEngine

STORES = Policy(store_responses=True)
CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture
async def client(world: World) -> AsyncIterator[AsyncOpenAI]:
    await world.bound(STORES)
    async with client_of(world, world.key) as client:
        yield client


def line(custom_id: str, url: str = CHAT, **body: object) -> bytes:
    """A line of a batch."""
    said = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5} | body
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": said}).encode() + b"\n"


async def made(client: AsyncOpenAI, calls: bytes, endpoint: str = CHAT, **more: Any) -> str:
    """A batch of these lines; its id."""
    file = await client.files.create(file=("in.jsonl", calls), purpose="batch")
    batch = await client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window="24h",
        **more,
    )
    assert batch.status == "validating"
    return str(batch.id)


async def ended(client: AsyncOpenAI, batch_id: str, timeout_s: float = 30.0, interval_s: float = 0.05) -> Batch:
    """The batch once it has ended."""
    async with asyncio.timeout(timeout_s):
        while (batch := await client.batches.retrieve(batch_id)).status not in ENDED:  # noqa: ASYNC110 Over HTTP.
            await asyncio.sleep(interval_s)
    return batch


async def content(client: AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of a file that a batch has written."""
    assert file_id is not None
    return [json.loads(it) for it in (await client.files.content(file_id)).text.splitlines()]


def counts(batch: Batch) -> tuple[int, int, int]:
    """Lines in all, completed, failed."""
    told = batch.request_counts
    assert told is not None
    return told.total, told.completed, told.failed


async def test_a_batch_gives_one_line_for_each_of_its_calls(client: AsyncOpenAI, world: World, tmp_path: Path) -> None:
    """Answers and errors are in files of their own, in the order of the lines; what they cost is in the ledger, in the batch's
    usage, and nothing of them is in the clear at rest.
    """
    bad = line("canary-b", temperature=-1)
    calls = line("canary-a") + b"\n" + bad + line("canary-c") + line("canary-d", stream=True)
    batch = await ended(client, await made(client, calls, metadata={"night": "canary"}))

    assert (batch.status, batch.metadata, batch.model) == ("completed", {"night": "canary"}, MODEL)
    assert counts(batch) == (4, 2, 2)
    outputs = await content(client, batch.output_file_id)
    assert [it["custom_id"] for it in outputs] == ["canary-a", "canary-c"]
    assert outputs[0]["response"]["status_code"] == 200 and outputs[0]["error"] is None
    assert outputs[0]["response"]["body"]["choices"][0]["message"]["content"]
    errors = await content(client, batch.error_file_id)
    assert [(it["custom_id"], it["line"], it["response"]["status_code"]) for it in errors] == [
        ("canary-b", 3, 400),
        ("canary-d", 5, 400),
    ]
    assert [it["response"]["body"]["error"]["param"] for it in errors] == ["temperature", "stream"]

    rows = {row["request_id"]: row for row in world.rows() if row["outcome"] == "ok"}
    assert set(rows) == {it["id"] for it in outputs}
    assert {row["priority"] for row in rows.values()} == {"batch"}
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(int(str(row["prompt_tokens"])) for row in rows.values()) > 0
    assert batch.usage.output_tokens == sum(int(str(row["completion_tokens"])) for row in rows.values()) > 0
    page = (await world.ask("GET", "/metrics")).body.decode()
    assert 'serving_gateway_batch_lines_total{result="completed"} 2.0' in page
    assert 'serving_gateway_batch_lines_total{result="failed"} 2.0' in page
    logged = [it for it in world.lines if it["batch_id"] == batch.id]
    assert {it["request_id"] for it in logged} >= set(rows)
    assert not seen_at_rest(tmp_path, b"canary")


def test_what_clients_read_and_send_is_what_the_official_client_has() -> None:
    """Field by field, from its own types: whichever is missing here, or there no more, is noticed with its next release."""
    for ours, theirs in (
        (BatchCard, Batch),
        (Counts, BatchRequestCounts),
        (BatchUsage, types.BatchUsage),
        (Faults, Errors),
        (Fault, BatchError),
        (FileCard, types.FileObject),
        (FileDeleted, types.FileDeleted),
    ):
        assert set(ours.__struct_fields__) == set(theirs.model_fields), theirs
    assert set(Wanted.__struct_fields__) == set(BatchCreateParams.__annotations__)
    assert set(get_type_hints(FileListParams)) == {"after", "limit", "order", "purpose"}
    (offered,) = (
        set(get_args(get_args(it)[0])) for it in [get_type_hints(BatchCreateParams, include_extras=True)["endpoint"]]
    )
    assert set(ENDPOINTS) < offered
    assert {it.value for it in Status} == set(get_args(Batch.model_fields["status"].annotation))


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"prompt": "Hello", "messages": None}),
        ("/v1/responses", {"input": "Hello", "messages": None, "max_tokens": None, "store": False}),
        ("/v1/embeddings", {"input": "Hello", "messages": None, "max_tokens": None}),
    ],
)
async def test_each_endpoint_answers_as_itself(client: AsyncOpenAI, endpoint: str, body: dict[str, object]) -> None:
    """A line's answer is what the same call would have got."""
    said = {name: value for name, value in ({"model": MODEL} | body).items() if value is not None}
    call = json.dumps({"custom_id": "a", "method": "POST", "url": endpoint, "body": said}).encode()
    batch = await ended(client, await made(client, call, endpoint))

    (output,) = await content(client, batch.output_file_id)
    key = {"/v1/completions": "choices", "/v1/responses": "output", "/v1/embeddings": "data"}[endpoint]
    assert output["response"]["status_code"] == 200 and key in output["response"]["body"]


@pytest.mark.parametrize(
    ("calls", "faults"),
    [
        (b"", [("empty_file", None)]),
        (b"\n \n", [("empty_file", None)]),
        (line("a") + b"{nothing\n" + b"[]\n", [("invalid_json_line", 2), ("invalid_json_line", 3)]),
        (line("a") + line("b") + line("a"), [("duplicate_custom_id", 3)]),
        (line("a", "/v1/embeddings"), [("mismatched_url", 1)]),
        (line("a") + line("b", model="other"), [("mismatched_model", 2)]),
        (line("a", model="unknown-model"), [("model_not_found", 1)]),
        (b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}', [("missing_required_parameter", 1)]),
        (b'{"custom_id": "a", "method": "GET", "url": "/v1/chat/completions", "body": {}}', [("invalid_method", 1)]),
        (line("a") + line("b", user="x" * 70_000), [("line_too_long", 2)]),
        (b"".join(line(str(number)) for number in range(1001)), [("too_many_requests", 1001)]),
    ],
    ids=lambda value: value[0][0] if isinstance(value, list) else "",
)
async def test_a_file_that_cannot_be_run_fails_whole(
    client: AsyncOpenAI, engine: ScriptedEngine, calls: bytes, faults: list[tuple[str, int | None]]
) -> None:
    """Each fault has its line; no call of it is made."""
    batch = await ended(client, await made(client, calls))

    assert batch.status == "failed" and batch.errors is not None and batch.failed_at is not None
    assert [(it.code, it.line) for it in batch.errors.data or []] == faults
    assert engine.received == []
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


async def test_a_cancelled_batch_keeps_what_was_done(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    """Calls at engines end, no other begins, and the error file names those that were not made."""
    gate = asyncio.Event()
    engine.improvise = lambda path, body: Script([ANSWER], content_type="application/json", gate=gate)
    batch_id = await made(client, b"".join(line(str(number)) for number in range(400)))
    await until(lambda: engine.running > 0)

    assert (await client.batches.cancel(batch_id)).status == "cancelling"
    gate.set()
    batch = await ended(client, batch_id)
    assert batch.status == "cancelled" and batch.cancelled_at and batch.cancelling_at
    total, completed, failed = counts(batch)
    assert (total, completed + failed) == (400, 400) and 0 < completed == len(engine.received) < 400
    errors = await content(client, batch.error_file_id)
    assert {it["error"]["code"] for it in errors} == {"batch_cancelled"}
    ids = [it["custom_id"] for it in errors + await content(client, batch.output_file_id)]
    assert sorted(ids, key=int) == [str(number) for number in range(400)]
    with pytest.raises(openai.NotFoundError):
        await client.batches.cancel("batch_unknown")
    assert (await client.batches.cancel(batch_id)).status == "cancelled"


async def test_an_erased_batch_stops(client: AsyncOpenAI, engine: ScriptedEngine, world: World) -> None:
    """Its calls at engines end, no other begins, and neither it nor its file is there."""
    gate = asyncio.Event()
    engine.improvise = lambda path, body: Script([ANSWER], content_type="application/json", gate=gate)
    batch_id = await made(client, b"".join(line(str(number)) for number in range(400)))
    await until(lambda: engine.running > 0)

    assert estate.erase(world.store, Whose()) == 2
    await until(lambda: engine.running == 0)
    called = len(engine.received)
    gate.set()
    with pytest.raises(openai.NotFoundError):
        await client.batches.retrieve(batch_id)
    assert [it.id async for it in client.files.list()] == []
    other = await ended(client, await made(client, line("a")))
    assert (other.status, len(engine.received)) == ("completed", called + 1)


async def test_a_limit_that_refuses_lines_makes_the_batch_wait(
    client: AsyncOpenAI, engine: ScriptedEngine, world: World
) -> None:
    """No line fails for it; when the limit is raised they all are answered."""
    await world.bound(Policy(store_responses=True, requests_per_minute=1))
    batch_id = await made(client, b"".join(line(str(number)) for number in range(20)))
    await until(lambda: any(row["status"] == 429 for row in world.rows()))
    assert (await client.batches.retrieve(batch_id)).status == "in_progress"
    assert len(engine.received) == 1

    await world.bound(STORES)
    batch = await ended(client, batch_id)
    assert (batch.status, counts(batch)) == ("completed", (20, 20, 0))


async def test_another_tenants_batch_is_not_there(client: AsyncOpenAI, world: World) -> None:
    """Neither it nor its files, to look at, to cancel, to page behind, or as the input of one's own."""
    batch = await ended(client, await made(client, line("a")))
    world.registry.create_tenant("rival")
    world.registry.update_tenant("rival", policy=STORES)
    key = world.registry.create_key("rival", name="laptop")

    async with client_of(world, key) as rival:
        for ask in (rival.batches.retrieve, rival.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                await ask(batch.id)
        for file_id in (batch.input_file_id, batch.output_file_id or ""):
            with pytest.raises(openai.NotFoundError):
                await rival.files.content(file_id)
        with pytest.raises(openai.BadRequestError):
            await rival.batches.list(after=batch.id)
        with pytest.raises(openai.BadRequestError):
            await rival.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
        assert [it.id async for it in rival.batches.list()] == []
    assert [it.id async for it in client.batches.list(limit=1)] == [batch.id]


async def test_what_is_no_batch_is_refused(client: AsyncOpenAI, world: World) -> None:
    """Each field that is wrong is named; a file that a batch reads stays."""
    file = await client.files.create(file=("in.jsonl", line("a")), purpose="batch")
    right = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    for name, wrong in (
        ("input_file_id", "file-unknown"),
        ("endpoint", "/v1/images"),
        ("completion_window", "1h"),
        ("metadata", {"a": 1}),
        ("output_expires_after", {"anchor": "created_at", "seconds": 1}),
        ("model", "gpt-4o"),
    ):
        answer = await world.post("/v1/batches", right | {name: wrong})
        assert answer.status == 400 and str(answer.error["param"]) in (name, "expires_after"), answer.body

    await world.bound(Policy(store_responses=True, requests_per_minute=0))
    batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    with pytest.raises(openai.ConflictError, match=batch.id):
        await client.files.delete(file.id)
    await client.batches.cancel(batch.id)
    await ended(client, batch.id)
    assert (await client.files.delete(file.id)).deleted


ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    }
).encode()
