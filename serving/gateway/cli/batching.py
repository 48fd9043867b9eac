"""Batching: `serving batch run`: a file of calls in, a file of answers out, for people without a program of their own.

It speaks to a gateway as any client does. What it has begun stands beside the output until it has ended: the same command goes on.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer

from serving.config import Settings
from serving.errors import Refusal
from serving.gateway.cli.printing import settings_of

#: Variables under which OpenAI's own clients look for the same.
URL_VARIABLE, KEY_VARIABLE = "OPENAI_BASE_URL", "OPENAI_API_KEY"
#: Seconds between two questions, at first and at most.
POLL_S = (1.0, 15.0)
#: Seconds for which a gateway may be away while a batch runs.
AWAY_S = 600.0
#: Seconds an answer may take.
TIMEOUT_S = 120.0
#: Bytes that are read and sent at a time.
PIECE_BYTES = 256 * 1024
#: Faults of a file that are printed.
FAULTS_SHOWN = 20

NO_HEADERS: Mapping[str, str] = {}

T = TypeVar("T")
Body = bytes | Iterator[bytes] | None

batch = typer.Typer(help="Files of calls, run on spare capacity.", no_args_is_help=True)


class _Counts(msgspec.Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0


class _Fault(msgspec.Struct):
    message: str = ""
    line: int | None = None


class _Faults(msgspec.Struct):
    data: list[_Fault] = []


class Batch(msgspec.Struct):
    """What is read of a batch."""

    id: str
    status: str
    request_counts: _Counts = msgspec.field(default_factory=_Counts)
    errors: _Faults | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in ("completed", "failed", "expired", "cancelled")


class _File(msgspec.Struct):
    id: str


class _Begun(msgspec.Struct):
    """What stands beside the output while the batch runs."""

    digest: str
    batch_id: str
    url: str


class _First(msgspec.Struct):
    url: str


@batch.command("run")
def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="JSON lines, each a call with its custom_id, method, url and body.")],
    output: Annotated[Path | None, typer.Option(help="Where answers go; errors go to a file beside it.")] = None,
    url: Annotated[
        str | None, typer.Option(help=f"Base URL; else {URL_VARIABLE}, else this machine's gateway.")
    ] = None,
) -> None:
    """Run a file of calls and wait for its answers; started again, it goes on where it was. The key is OPENAI_API_KEY's, else this machine's."""
    settings = settings_of(context)
    target = output or file.with_name(f"{file.stem}.output.jsonl")
    service = Service(url or os.environ.get(URL_VARIABLE) or _local_url(settings), _key(settings))
    try:
        ended = _Run(service, file, target, say=lambda text: typer.echo(text, err=True)).run()
    except KeyboardInterrupt:
        raise Refusal("Interrupted; the batch runs on, and the same command goes on waiting for it.") from None
    counts = ended.request_counts
    typer.echo(f"{ended.status}: {counts.completed} of {counts.total} calls answered, {counts.failed} failed.")
    if ended.status != "completed":
        sys.exit(1)


class Service:
    """A gateway, as a client sees it."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        self._key = key

    def upload(self, file: Path) -> str:
        """The file's id there."""
        border = secrets.token_hex(16)
        head = (
            f'--{border}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{border}\r\n'
            'Content-Disposition: form-data; name="file"; filename="batch.jsonl"\r\n\r\n'
        ).encode()
        tail = f"\r\n--{border}--\r\n".encode()
        size = len(head) + file.stat().st_size + len(tail)
        headers = {"Content-Type": f"multipart/form-data; boundary={border}", "Content-Length": str(size)}
        return self._ask("POST", "/files", _File, _form(head, file, tail), headers).id

    def create(self, file_id: str, endpoint: str) -> Batch:
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
        return self._ask("POST", "/batches", Batch, msgspec.json.encode(body), {"Content-Type": "application/json"})

    def find(self, batch_id: str) -> Batch:
        return self._ask("GET", f"/batches/{batch_id}", Batch)

    def download(self, file_id: str, target: Path) -> None:
        """Its content, put at `target` whole or not at all."""
        draft = target.with_name(f".{target.name}.part")
        with self._opened("GET", f"/files/{file_id}/content") as answer, draft.open("wb") as file:
            for piece in _pieces(answer):
                file.write(piece)
        draft.replace(target)

    def _ask(
        self, method: str, path: str, kind: type[T], body: Body = None, headers: Mapping[str, str] = NO_HEADERS
    ) -> T:
        with self._opened(method, path, body, headers) as answer:
            return msgspec.json.decode(b"".join(_pieces(answer)), type=kind)

    def _opened(
        self, method: str, path: str, body: Body = None, headers: Mapping[str, str] = NO_HEADERS
    ) -> http.client.HTTPResponse:
        sent = {"Authorization": f"Bearer {self._key}"} | dict(headers)
        request = urllib.request.Request(self.url + path, data=body, headers=sent, method=method)
        try:
            opened: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if error.code >= 500 or error.code == 429:
                raise Away(f"answers {error.code}") from None
            raise Refusal(f"The gateway refuses this ({error.code}): {_said(error)}") from None
        except urllib.error.URLError as error:
            raise Away(str(getattr(error.reason, "strerror", None) or error.reason)) from None
        except (ValueError, http.client.InvalidURL):
            raise Refusal(f"'{self.url}' is no address of a gateway, such as http://127.0.0.1:8080/v1.") from None
        except (OSError, http.client.HTTPException) as error:
            raise Away(_reason(error)) from None
        return opened


class Away(Exception):
    """The gateway does not answer now."""


class _Run:
    """One run of the command."""

    def __init__(self, service: Service, file: Path, target: Path, say: Callable[[str], None]) -> None:
        self._service = service
        self._file = file
        self._target = target
        self._say = say
        self._note = target.with_name(f"{target.name}.batch")

    def run(self) -> Batch:
        """The batch once it has ended and its files are here."""
        digest, endpoint = _looked_at(self._file)
        begun = self._begun(digest) or self._begin(digest, endpoint)
        ended = self._ended(begun.batch_id)
        if ended.status == "failed":
            self._note.unlink(missing_ok=True)
            raise Refusal(_faults(self._file, ended))
        errors = self._target.with_name(f"{self._target.stem}.errors.jsonl")
        for file_id, target in ((ended.output_file_id, self._target), (ended.error_file_id, errors)):
            if file_id is not None:
                self._lasting(lambda: self._service.download(file_id, target))  # noqa: B023 At once.
                self._say(f"{target} is written.")
        self._note.unlink(missing_ok=True)
        return ended

    def _begun(self, digest: str) -> _Begun | None:
        try:
            begun = msgspec.json.decode(self._note.read_bytes(), type=_Begun)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError):
            raise Refusal(f"The file {self._note} cannot be read: remove it to begin anew.") from None
        if (begun.digest, begun.url) != (digest, self._service.url):
            raise Refusal(
                f"{self._target} belongs to batch {begun.batch_id}, of another file or gateway: name another --output, "
                f"or remove {self._note}."
            )
        self._say(f"Batch {begun.batch_id} was begun before and goes on.")
        return begun

    def _begin(self, digest: str, endpoint: str) -> _Begun:
        # Before anything is begun: a batch whose answers have no place here, nor its name, would run for no one.
        try:
            self._note.touch()
            self._note.unlink()
        except OSError as error:
            raise Refusal(f"The file {self._target} cannot be written: {_reason(error).lower()}.") from None
        self._say(f"Uploading {self._file} ({self._file.stat().st_size} bytes).")
        try:
            made = self._service.create(self._service.upload(self._file), endpoint)
        except Away as away:
            raise Refusal(f"The gateway at {self._service.url} cannot be used: {away}.") from None
        begun = _Begun(digest, made.id, self._service.url)
        self._note.write_bytes(msgspec.json.encode(begun))
        self._say(f"Batch {made.id} has begun.")
        return begun

    def _ended(self, batch_id: str) -> Batch:
        wait_s, most_s = POLL_S
        told = ""
        while True:
            found = self._lasting(lambda: self._service.find(batch_id))
            counts = found.request_counts
            state = f"{found.status}: {counts.completed + counts.failed} of {counts.total} done, {counts.failed} failed"
            if state != told:
                self._say(state)
            elif not found.has_ended:
                wait_s = min(wait_s * 1.5, most_s)
            if found.has_ended:
                return found
            told = state
            time.sleep(wait_s)

    def _lasting(self, ask: Callable[[], T]) -> T:
        since = time.monotonic()
        while True:
            try:
                return ask()
            except Away as away:
                if time.monotonic() - since > AWAY_S:
                    raise Refusal(
                        f"The gateway at {self._service.url} is away ({away}); the same command goes on later."
                    ) from None
                time.sleep(POLL_S[0])


def _looked_at(file: Path) -> tuple[str, str]:
    """The file's digest, and the endpoint that its first line names. Raises Refusal where it has no such line."""
    digest, first = hashlib.sha256(), b""
    try:
        with file.open("rb") as opened:
            for line in opened:
                digest.update(line)
                first = first or line.strip()
    except OSError as error:
        raise Refusal(f"The file {file} cannot be read: {(error.strerror or 'unknown error').lower()}.") from None
    try:
        return digest.hexdigest(), msgspec.json.decode(first, type=_First).url
    except msgspec.DecodeError:
        raise Refusal(
            f"{file} does not begin with a call, such as "
            '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {…}}.'
        ) from None


def _pieces(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """A whole answer's bytes. Raises Away where it breaks off."""
    try:
        while piece := answer.read(PIECE_BYTES):
            yield piece
    except (OSError, http.client.HTTPException) as error:
        raise Away(_reason(error)) from None
    # Its bytes that did not come: http.client takes an end that comes too soon for the end.
    if answer.length:
        raise Away("its answer breaks off")


def _reason(error: OSError | http.client.HTTPException) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def _form(head: bytes, file: Path, tail: bytes) -> Iterator[bytes]:
    yield head
    with file.open("rb") as opened:
        while piece := opened.read(PIECE_BYTES):
            yield piece
    yield tail


def _faults(file: Path, failed: Batch) -> str:
    faults = failed.errors.data if failed.errors else []
    shown = [f"{'' if it.line is None else f'line {it.line}: '}{it.message}" for it in faults[:FAULTS_SHOWN]]
    return "\n".join([f"{file} cannot be run as a batch:", *shown])


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return str(msgspec.json.decode(error.read())["error"]["message"])
    except (msgspec.DecodeError, LookupError, TypeError, OSError):
        return str(error.reason)


def _local_url(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.gateway.port}/v1"


def _key(settings: Settings) -> str:
    if key := os.environ.get(KEY_VARIABLE):
        return key
    path = settings.store.first_key_file or settings.home / "admin.key"
    try:
        return path.read_text().strip()
    except OSError:
        raise Refusal(f"There is no key: set {KEY_VARIABLE}, or start a gateway here, which makes {path}.") from None
