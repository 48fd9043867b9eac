"""Upload: a file as a form brings it (multipart/form-data), taken apart and kept piece by piece while it comes."""

from __future__ import annotations

from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.errors import InvalidRequest, RequestTooLarge
from serving.gateway.nouns import Caller
from serving.gateway.stored.files.files import File, Purpose, TenantFiles, brought_by
from serving.gateway.stored.files.pieces import PIECE_BYTES, Cipher

#: Bytes of all fields beside the file.
FIELDS_BYTES_MAX = 16 * 1024
#: Bytes of a form beside its file: fields, the parts' headers and borders.
FORM_BYTES_MAX = 64 * 1024
#: Seconds a client may ask a file to be kept, as OpenAI bounds them; `gateway.files.expires_after_s` bounds them besides.
EXPIRES_AFTER_S = (3600, 30 * 86_400)

_FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})


class Form:
    """What has come of a form so far: its fields, and the file's bytes as they come."""

    def __init__(self, content_type: str | None) -> None:
        """Raises InvalidRequest where that says no form."""
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise InvalidRequest("A file is uploaded as multipart/form-data, with the fields 'file' and 'purpose'.")
        self.fields: dict[str, str] = {}
        #: None until the file's part has begun.
        self.file_name: str | None = None
        self.has_ended = False
        self._came = bytearray()
        self._header = (bytearray(), bytearray())
        self._headers: dict[bytes, bytes] = {}
        #: The field that comes now; None while the file does.
        self._field: str | None = None
        self._value = bytearray()
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._headers.clear,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._header_ended,
                    "on_headers_finished": self._part_begun,
                    "on_part_data": self._part_came,
                    "on_part_end": self._part_ended,
                    "on_end": self._ended,
                },
            )
        except FormParserError:
            # Such as a boundary that is longer than forms have.
            raise _no_form() from None

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes of the form; returns those of the file among them. Raises InvalidRequest."""
        try:
            self._parser.write(piece)
        except FormParserError:
            raise _no_form() from None
        came = bytes(self._came)
        self._came.clear()
        return came

    def _header_ended(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    def _part_begun(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode(errors="replace")
        if name != "file":
            if name not in _FIELDS:
                raise InvalidRequest(f"Unknown field '{name[:64]}' in the form.", param=name[:64])
            self._field = name
        elif self.file_name is None:
            self._field = None
            self.file_name = options.get(b"filename", b"").decode(errors="replace") or "file"
        else:
            raise InvalidRequest("A form brings one file.", param="file")

    def _part_came(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._came += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > FIELDS_BYTES_MAX:
            raise InvalidRequest("A field of the form is too long.", param=self._field)

    def _part_ended(self) -> None:
        if self._field is not None:
            self.fields[self._field] = self._value.decode(errors="replace")
            self._value.clear()

    def _ended(self) -> None:
        self.has_ended = True

    def require_purpose(self) -> None:
        """Raises InvalidRequest where the file is for something that is not here."""
        purpose = self.fields.get("purpose")
        if purpose is None:
            raise InvalidRequest("The form has no field 'purpose'.", param="purpose")
        if purpose != Purpose.BATCH:
            raise InvalidRequest("purpose: files are for batches here; it must be 'batch'.", param="purpose")

    def expires_after_s(self) -> float | None:
        """How long the client wants the file kept; raises InvalidRequest where that is no number of seconds."""
        anchor, seconds = (self.fields.get(f"expires_after[{it}]") for it in ("anchor", "seconds"))
        if anchor is None and seconds is None:
            return None
        if anchor != "created_at":
            raise InvalidRequest("expires_after.anchor must be 'created_at'.", param="expires_after")
        return seconds_of(seconds)


def _no_form() -> InvalidRequest:
    return InvalidRequest("The request body is not the form that its header says.")


def seconds_of(seconds: object) -> float:
    """What a client says in `expires_after.seconds`; raises InvalidRequest."""
    least, most = EXPIRES_AFTER_S
    number = int(seconds) if isinstance(seconds, str) and seconds.isdecimal() and len(seconds) < 10 else seconds
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
        raise InvalidRequest(f"expires_after.seconds must be from {least} to {most}.", param="expires_after")
    return float(number)


async def keep(
    files: TenantFiles, caller: Caller, content_type: str | None, pieces: AsyncIterator[bytes], announced_bytes: int
) -> File:
    """Keep the file of a form that comes; one that breaks off leaves nothing. Raises InvalidRequest and its kinds, RequestTooLarge."""
    form = Form(content_type)
    # At least so many: what the form takes besides is known at its end.
    upload = _Upload(files, caller, min(max(0, announced_bytes - FORM_BYTES_MAX), files.settings.file_bytes_max))
    try:
        async for piece in pieces:
            came = form.feed(piece)
            if "purpose" in form.fields:
                form.require_purpose()
            if came:
                await upload.take(form.file_name or "", came)
        if form.file_name is None or not form.has_ended:
            raise InvalidRequest("The form has no field 'file'.", param="file")
        form.require_purpose()
        return await upload.finish(form.file_name, form.expires_after_s())
    except BaseException:
        await upload.abandon()
        raise


class _Upload:
    """The pieces of one file."""

    def __init__(self, files: TenantFiles, caller: Caller, announced_bytes: int) -> None:
        self._files = files
        self._caller = caller
        self._announced_bytes = announced_bytes
        self._cipher: Cipher | None = None
        self._held = bytearray()
        self._bytes = 0
        self._count = 0

    async def take(self, name: str, came: bytes) -> None:
        self._bytes += len(came)
        if self._bytes > self._files.settings.file_bytes_max:
            raise RequestTooLarge(f"The file is larger than {self._files.settings.file_bytes_max} bytes.")
        self._held += came
        while len(self._held) >= PIECE_BYTES:
            await self._put(name, bytes(self._held[:PIECE_BYTES]))
            del self._held[:PIECE_BYTES]

    async def finish(self, name: str, expires_after_s: float | None) -> File:
        if self._held:
            await self._put(name, bytes(self._held))
        cipher = await self._begun(name)
        file = await self._files.finish(cipher, self._bytes, self._count, expires_after_s)
        self._cipher = None
        return file

    async def abandon(self) -> None:
        if self._cipher is not None:
            await self._files.abandon(self._cipher.file_id)

    async def _put(self, name: str, piece: bytes) -> None:
        await self._files.shelf.put(await self._begun(name), self._count, piece)
        self._count += 1

    async def _begun(self, name: str) -> Cipher:
        if self._cipher is None:
            self._cipher = await self._files.begin(brought_by(self._caller, name), self._announced_bytes)
        return self._cipher
