"""Batches: `/v1/batches` as OpenAI's API has it: create, list, retrieve, cancel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from serving.errors import InvalidRequest, ResourceNotFound, UnknownParameter
from serving.gateway.api.files import TAG, id_in, limit_of
from serving.gateway.api.lines import ENDPOINTS
from serving.gateway.api.visit import Handler, Visit
from serving.gateway.http.asgi import require_json
from serving.gateway.http.routing import About, Entry
from serving.gateway.identity.identity import Identity
from serving.gateway.nouns import Caller
from serving.gateway.stored.batches.batches import Batch, Batches, Said, Status
from serving.gateway.stored.batches.checking import Fault
from serving.gateway.stored.desk import Desk
from serving.gateway.stored.files.files import Purpose, TenantFiles, require_consent
from serving.gateway.stored.files.upload import seconds_of

#: Bytes of a request that creates a batch, metadata included.
BODY_BYTES_MAX = 64 * 1024
#: Batches on one page, at most and where a client does not say, as OpenAI has it.
PAGE_BATCHES_MAX, PAGE_BATCHES = 100, 20
#: Pairs of metadata, and characters of their two halves.
METADATA_MAX, METADATA_KEY_CHARS, METADATA_VALUE_CHARS = 16, 64, 512
_ID_CHARS_MAX = 64


class Expiry(msgspec.Struct):
    """When what a batch writes is deleted."""

    anchor: str
    seconds: int


class Wanted(msgspec.Struct):
    """What creates a batch."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: Expiry | None = None


class Counts(msgspec.Struct):
    """`BatchRequestCounts`."""

    total: int
    completed: int
    failed: int


class InputDetails(msgspec.Struct):
    cached_tokens: int


class OutputDetails(msgspec.Struct):
    reasoning_tokens: int


class BatchUsage(msgspec.Struct):
    """Of all lines that were answered."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Faults(msgspec.Struct):
    data: list[Fault]
    object: str = "list"


class BatchCard(msgspec.Struct):
    """`Batch`."""

    id: str
    endpoint: str
    model: str | None
    errors: Faults | None
    input_file_id: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: Counts
    usage: BatchUsage
    metadata: dict[str, str] | None
    completion_window: str = "24h"
    object: str = "batch"


class BatchList(msgspec.Struct):
    data: list[BatchCard]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: str = "list"


class BatchesApi:
    """Answers for the batches of the caller's tenant."""

    def __init__(self, identity: Identity, batches: Batches, files: TenantFiles, desk: Desk, body_s: float) -> None:
        self._identity = identity
        self._batches = batches
        self._files = files
        self._desk = desk
        self._body_s = body_s

    def entries(self) -> Iterator[Entry[Handler]]:
        """The routes of batches."""
        pages = {"after": "The last id of the page before.", "limit": "Batches of a page."}
        listed = About(summary="Batches, the newest first.", tag=TAG, answer=BatchList, query=pages)
        made = About(summary="Run a file of calls.", tag=TAG, body=Wanted, answer=BatchCard)
        yield Entry("GET", "/v1/batches", self._list, about=listed)
        yield Entry("POST", "/v1/batches", self._create, about=made)
        yield Entry(
            "GET", "/v1/batches/{id}", self._show, about=About(summary="One of them.", tag=TAG, answer=BatchCard)
        )
        cancelled = About(summary="Begin no more of its calls.", tag=TAG, answer=BatchCard)
        yield Entry("POST", "/v1/batches/{id}/cancel", self._cancel, about=cancelled)

    async def _caller(self, visit: Visit) -> Caller:
        visit.record.caller = caller = await self._identity.identify(visit.request)
        require_consent(caller)
        return caller

    async def _create(self, visit: Visit) -> None:
        caller = await self._caller(visit)
        require_json(visit.request)
        body = _object(await visit.body(BODY_BYTES_MAX, self._body_s))
        endpoint, said = _endpoint(body), Said(_metadata(body), _output_expires_after_s(body))
        file_id = _text(body, "input_file_id")
        try:
            file = await self._files.find(caller.tenant_id, file_id[:_ID_CHARS_MAX])
        except ResourceNotFound:
            file = None
        if file is None or file.purpose != Purpose.BATCH:
            raise InvalidRequest("input_file_id: there is no such file for batches.", param="input_file_id")
        made = await self._desk.done(self._batches.create, caller, endpoint, file.id, said)
        await visit.answer(200, _card(made))

    async def _list(self, visit: Visit) -> None:
        caller, query = await self._caller(visit), visit.request.query
        limit = limit_of(query("limit"), PAGE_BATCHES_MAX, PAGE_BATCHES)
        page, has_more = await self._desk.done(self._batches.page, caller.tenant_id, query("after"), limit)
        first, last = (page[0].id, page[-1].id) if page else (None, None)
        await visit.answer(200, BatchList([_card(batch) for batch in page], has_more, first, last))

    async def _show(self, visit: Visit) -> None:
        caller = await self._caller(visit)
        batch_id = id_in(visit)
        await visit.answer(200, _card(await self._desk.done(self._batches.find, caller.tenant_id, batch_id)))

    async def _cancel(self, visit: Visit) -> None:
        caller = await self._caller(visit)
        batch_id = id_in(visit)
        await visit.answer(200, _card(await self._desk.done(self._batches.cancel, caller.tenant_id, batch_id)))


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("We could not parse the JSON body of your request.") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    for name in body:
        if name not in Wanted.__struct_fields__:
            raise UnknownParameter(name[:64])
    return body


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is required, and a string.", param=name)
    return value


def _endpoint(body: dict[str, Any]) -> str:
    endpoint = _text(body, "endpoint")
    if endpoint not in ENDPOINTS:
        raise InvalidRequest(f"endpoint must be one of {', '.join(ENDPOINTS)}.", param="endpoint")
    if _text(body, "completion_window") != "24h":
        raise InvalidRequest("completion_window must be '24h'.", param="completion_window")
    return endpoint


def _metadata(body: dict[str, Any]) -> dict[str, str] | None:
    metadata = body.get("metadata")
    if metadata is None:
        return None
    is_usable = isinstance(metadata, dict) and len(metadata) <= METADATA_MAX
    if not is_usable or not all(
        len(key) <= METADATA_KEY_CHARS and isinstance(value, str) and len(value) <= METADATA_VALUE_CHARS
        for key, value in metadata.items()
    ):
        said = f"metadata has at most {METADATA_MAX} pairs of strings, of {METADATA_KEY_CHARS} and {METADATA_VALUE_CHARS} characters."
        raise InvalidRequest(said, param="metadata")
    return dict(metadata)


def _output_expires_after_s(body: dict[str, Any]) -> float | None:
    said = body.get("output_expires_after")
    if said is None:
        return None
    if not isinstance(said, dict) or said.get("anchor") != "created_at" or set(said) != {"anchor", "seconds"}:
        raise InvalidRequest(
            "output_expires_after has 'anchor', which must be 'created_at', and 'seconds'.",
            param="output_expires_after",
        )
    return seconds_of(said["seconds"])


def _card(batch: Batch) -> BatchCard:
    usage = batch.usage
    has_ended = batch.ended_at is not None
    ended = {batch.status: _whole(batch.ended_at)}
    return BatchCard(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.model,
        errors=Faults(list(batch.said.faults)) if batch.said.faults else None,
        input_file_id=batch.input_file_id,
        status=batch.status,
        output_file_id=batch.output.file_id if has_ended and batch.output.bytes else None,
        error_file_id=batch.errors.file_id if has_ended and batch.errors.bytes else None,
        created_at=int(batch.created_at),
        in_progress_at=_whole(batch.in_progress_at),
        expires_at=int(batch.expires_at),
        finalizing_at=_whole(batch.finalizing_at),
        completed_at=ended.get(Status.COMPLETED),
        failed_at=ended.get(Status.FAILED),
        expired_at=ended.get(Status.EXPIRED),
        cancelling_at=_whole(batch.cancelling_at),
        cancelled_at=ended.get(Status.CANCELLED),
        request_counts=Counts(batch.total, batch.done - batch.failed, batch.failed),
        usage=BatchUsage(
            usage.prompt_tokens,
            InputDetails(usage.cached_prompt_tokens),
            usage.completion_tokens,
            OutputDetails(usage.reasoning_tokens),
            usage.prompt_tokens + usage.completion_tokens,
        ),
        metadata=batch.said.metadata,
    )


def _whole(epoch_s: float | None) -> int | None:
    return None if epoch_s is None else int(epoch_s)
