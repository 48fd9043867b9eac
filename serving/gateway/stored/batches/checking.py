"""Checking: can a file be run as a batch? A pure judgement of its lines, one after the other, in OpenAI's words for what is wrong.

Whatever of a line's call itself is wrong fails with that line alone, when it is run.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from typing import Self

import msgspec

from serving.gateway.stored.batches.jsonl import CUSTOM_ID_CHARS_MAX, Line, Request

#: What is told of a file that is wrong in many places.
FAULTS_MAX = 100


class Fault(msgspec.Struct, frozen=True):
    """`BatchError`."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Checker:
    """Judges one file, inside `with`. Ids that were seen are on the disk: a file of any length needs the same memory."""

    def __init__(self, endpoint: str, lines_max: int) -> None:
        self._endpoint = endpoint
        self._lines_max = lines_max
        self.faults: list[Fault] = []
        self.total = 0
        #: The model that all lines name.
        self.model: str | None = None
        # Without a name it is a file of its own, which no one else sees and which goes when it is closed.
        self._seen = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._seen.execute("CREATE TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._seen.close()

    @property
    def is_hopeless(self) -> bool:
        """More need not be read."""
        return len(self.faults) >= FAULTS_MAX or self.total > self._lines_max

    def look(self, lines: Iterable[Line]) -> None:
        """Judge the next lines of the file."""
        with closing(self._seen.cursor()) as cursor:
            cursor.execute("BEGIN")
            for line in lines:
                self.total += 1
                if self.total > self._lines_max:
                    self._fault("too_many_requests", f"A batch has {self._lines_max} lines at most.", line=line.line)
                fault = self._fault_of(line, cursor)
                if fault is not None:
                    self.faults.append(fault)
                if self.is_hopeless:
                    break
            cursor.execute("COMMIT")

    def end(self) -> None:
        """There are no more lines."""
        if self.total == 0:
            self._fault("empty_file", "The input file has no lines.")

    def _fault_of(self, line: Line, cursor: sqlite3.Cursor) -> Fault | None:
        if line.raw is None:
            return Fault("line_too_long", "This line is longer than a request may be.", line=line.line)
        try:
            request = msgspec.json.decode(line.raw, type=Request)
        except msgspec.ValidationError as error:
            return _of_shape(str(error), line.line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _no_json(line.line)
        return self._of_request(request, line.line, cursor)

    def _of_request(self, request: Request, line: int, cursor: sqlite3.Cursor) -> Fault | None:
        if not 0 < len(request.custom_id) <= CUSTOM_ID_CHARS_MAX:
            said = f"The custom_id must have 1 to {CUSTOM_ID_CHARS_MAX} characters."
            return Fault("invalid_custom_id", said, "custom_id", line)
        digest = hashlib.blake2b(request.custom_id.encode(errors="surrogatepass"), digest_size=16).digest()
        if cursor.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 0:
            said = f"The custom_id '{request.custom_id[:64]}' for this request is a duplicate of another request."
            return Fault("duplicate_custom_id", said, "custom_id", line)
        if request.method != "POST":
            return Fault("invalid_method", "The method of every request must be POST.", "method", line)
        if request.url != self._endpoint:
            said = "The URL provided for this request does not match the batch endpoint."
            return Fault("mismatched_url", said, "url", line)
        return self._of_body(request.body, line)

    def _of_body(self, body: msgspec.Raw, line: int) -> Fault | None:
        try:
            named = msgspec.json.decode(body, type=_Model)
        except msgspec.ValidationError:
            return Fault("missing_required_parameter", "The body must name its model.", "body.model", line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # What is in a body is not looked at before.
            return _no_json(line)
        self.model = self.model if self.model is not None else named.model
        if named.model != self.model:
            said = "The model of this request differs from that of the first one; a batch has one model."
            return Fault("mismatched_model", said, "body.model", line)
        return None

    def _fault(self, code: str, message: str, line: int | None = None) -> None:
        self.faults.append(Fault(code, message, line=line))


class _Model(msgspec.Struct):
    model: str


def _no_json(line: int) -> Fault:
    return Fault("invalid_json_line", "This line is not parseable as valid JSON.", line=line)


def _of_shape(said: str, line: int) -> Fault:
    """What msgspec says of an object that lacks something: "Object missing required field `url`"."""
    for name in Request.__struct_fields__:
        if f"`{name}`" in said or f"$.{name}" in said:
            code = "missing_required_parameter" if "missing" in said else "invalid_type"
            what = "is missing" if "missing" in said else "has the wrong type"
            return Fault(code, f"The required parameter '{name}' {what}.", name, line)
    return Fault("invalid_json_line", "Each line must be a JSON object.", line=line)
