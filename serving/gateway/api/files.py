"""Files: `/v1/files` as OpenAI's API has it: upload, list, retrieve, content, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec

from serving.errors import InvalidRequest, RequestTimedOut
from serving.gateway.admission.admission import Admission
from serving.gateway.api.visit import Handler, Visit
from serving.gateway.http.asgi import Responder
from serving.gateway.http.routing import About, Entry
from serving.gateway.identity.identity import Identity
from serving.gateway.nouns import Caller
from serving.gateway.stored.files import upload
from serving.gateway.stored.files.files import File, TenantFiles, require_consent
from serving.gateway.stored.files.pieces import PIECE_BYTES

#: TenantFiles on one page, at most and where a client does not say, as OpenAI has it.
PAGE_FILES_MAX = 10_000
#: Pieces that one upload or download holds: as they come, as they are sealed, and what the other side has not read yet.
PIECES_HELD = 3
_ID_CHARS_MAX = 64
#: Where the API's document has them.
TAG = "batches"


class FileCard(msgspec.Struct):
    """`FileObject`."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None
    object: str = "file"
    status: str = "processed"
    status_details: str | None = None


class FileList(msgspec.Struct):
    data: list[FileCard]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: str = "list"


class FileDeleted(msgspec.Struct):
    id: str
    object: str = "file"
    deleted: bool = True


class FilesApi:
    """Answers for the files of the caller's tenant."""

    def __init__(self, identity: Identity, admission: Admission, files: TenantFiles) -> None:
        self._identity = identity
        self._admission = admission
        self._files = files

    def entries(self) -> Iterator[Entry[Handler]]:
        """The routes of files."""
        pages = {"after": "The last id of the page before.", "limit": "Files of a page.", "order": "`asc` or `desc`."}
        listed = About(
            summary="Files, the newest first.",
            tag=TAG,
            answer=FileList,
            query=pages | {"purpose": "`batch` or `batch_output`."},
        )
        upload = About(summary="Upload a file of calls, as a form with `file` and `purpose`.", tag=TAG, answer=FileCard)
        yield Entry("GET", "/v1/files", self._list, about=listed)
        yield Entry("POST", "/v1/files", self._upload, about=upload)
        yield Entry("GET", "/v1/files/{id}", self._show, about=About(summary="One of them.", tag=TAG, answer=FileCard))
        deleted = About(summary="Delete it.", tag=TAG, answer=FileDeleted)
        yield Entry("DELETE", "/v1/files/{id}", self._delete, about=deleted)
        content = About(summary="Its bytes.", tag=TAG, content_type="application/octet-stream")
        yield Entry("GET", "/v1/files/{id}/content", self._content, about=content)

    async def _caller(self, visit: Visit) -> Caller:
        visit.record.caller = caller = await self._identity.identify(visit.request)
        require_consent(caller)
        return caller

    async def _found(self, visit: Visit) -> File:
        caller = await self._caller(visit)
        return await self._files.find(caller.tenant_id, id_in(visit))

    async def _upload(self, visit: Visit) -> None:
        caller = await self._caller(visit)
        request, settings = visit.request, self._files.settings
        announced = request.header("content-length") or ""
        size = int(announced) if announced.isdecimal() and len(announced) < 16 else settings.file_bytes_max
        pieces = request.pieces(settings.file_bytes_max + upload.FORM_BYTES_MAX)
        with self._admission.entered(visit.record) as share:
            share.take(PIECES_HELD * PIECE_BYTES)
            try:
                async with asyncio.timeout(settings.upload_s):
                    file = await upload.keep(self._files, caller, request.header("content-type"), pieces, size)
            except TimeoutError:
                raise RequestTimedOut(f"The file did not arrive within {settings.upload_s:g} seconds.") from None
        await visit.answer(200, _card(file))

    async def _list(self, visit: Visit) -> None:
        caller = await self._caller(visit)
        query = visit.request.query
        order = query("order") or "desc"
        if order not in ("asc", "desc"):
            raise InvalidRequest("order must be 'asc' or 'desc'.", param="order")
        page = await self._files.page(
            caller.tenant_id,
            purpose=query("purpose"),
            after=query("after"),
            limit=limit_of(query("limit"), PAGE_FILES_MAX, PAGE_FILES_MAX),
            is_ascending=order == "asc",
        )
        cards = [_card(file) for file in page.files]
        first, last = (cards[0].id, cards[-1].id) if cards else (None, None)
        await visit.answer(200, FileList(cards, page.has_more, first, last))

    async def _show(self, visit: Visit) -> None:
        await visit.answer(200, _card(await self._found(visit)))

    async def _content(self, visit: Visit) -> None:
        file, responder = await self._found(visit), visit.responder
        with self._admission.entered(visit.record) as share:
            share.take(PIECES_HELD * PIECE_BYTES)
            try:
                async with asyncio.timeout(self._download_s(file)):
                    await self._send(file, responder)
            except TimeoutError:
                raise RequestTimedOut("The file was not read in time.") from None

    def _download_s(self, file: File) -> float:
        """Seconds it may take, at the pace that is asked of uploads: what a batch has written may be larger than those."""
        settings = self._files.settings
        return settings.upload_s * max(1.0, file.bytes / settings.file_bytes_max)

    async def _send(self, file: File, responder: Responder) -> None:
        headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % file.bytes)]
        async for piece in self._files.content(file):
            # Once the first piece is there: what cannot be read is an error then, and no answer that breaks off.
            if not responder.is_started:
                await responder.start(200, headers)
            await responder.write(piece)
        if not responder.is_started:
            await responder.start(200, headers)
        await responder.finish()

    async def _delete(self, visit: Visit) -> None:
        file = await self._found(visit)
        await self._files.remove(file.tenant_id, file.id)
        await visit.answer(200, FileDeleted(file.id))


def id_in(visit: Visit) -> str:
    """The id in a path, whatever follows it there."""
    return visit.argument.partition("/")[0][:_ID_CHARS_MAX]


def limit_of(said: str | None, most: int, default: int) -> int:
    """A page's size as a query says it; raises InvalidRequest."""
    if said is None:
        return default
    if not said.isdecimal() or len(said) > 6 or not 1 <= int(said) <= most:
        raise InvalidRequest(f"limit must be a number from 1 to {most}.", param="limit")
    return int(said)


def _card(file: File) -> FileCard:
    return FileCard(
        id=file.id,
        bytes=file.bytes,
        created_at=int(file.created_at),
        filename=file.name,
        purpose=file.purpose,
        expires_at=None if file.expires_at is None else int(file.expires_at),
    )
