"""Shift: a batch in windows; `tests/gateway/api/test_batches.py` has whole ones through the gateway."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving.config import FileSettings
from serving.errors import ApiError, EngineFailed
from serving.gateway.nouns import Usage
from serving.gateway.store.store import Store
from serving.gateway.stored.batches.batches import WINDOW_S, Batch, Batches, Done, Said, Status
from serving.gateway.stored.batches.jsonl import Line
from serving.gateway.stored.batches.shift import (
    AHEAD_LINES,
    LOSSES_MAX,
    TOGETHER_LINES,
    WINDOW_LINES,
    Keep,
    Shift,
    Tools,
)
from serving.gateway.stored.batches.spare import Spare
from serving.gateway.stored.desk import Desk
from serving.gateway.stored.files.files import brought_by
from serving.gateway.stored.files.pieces import PIECE_BYTES
from serving.gateway.stored.vault import Vault
from serving.wire import EngineLoad
from tests.clock import Clock
from tests.gateway.calls import CALLER
from tests.gateway.places import SqlitePlace
from tests.gateway.stored.files.test_files import files_of
from tests.gateway.world import until

LINES = TOGETHER_LINES + 40


class Answer(msgspec.Struct):
    status: int = 200
    body: bytes = b"{}"
    usage: Usage = Usage(1, 1)
    error: ApiError | None = None
    is_kept: bool = False


class Answering:
    """Stands where the gateway would be: answers each line by what it says."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        self.at_once = 0
        self.breaks_at: int | None = None

    async def require(self, batch: Batch, model: str) -> None:
        return None

    async def call(self, batch: Batch, body: bytes, request_id: str, keep: Keep) -> Answer:
        number = json.loads(body)["input"]
        if number == self.breaks_at:
            raise ZeroDivisionError
        self.asked[number] += 1
        self.at_once = max(self.at_once, len(asyncio.all_tasks()))
        fails = number % 100 == 7 and (self.asked[number] < 2 or number == 107)
        answer = Answer(502, b'{"error":{}}', error=EngineFailed("No.")) if fails else Answer()
        keep(answer)
        return answer

    def waits(self, error: ApiError) -> bool:
        return False

    def engines_of(self, model: str) -> str:
        return model


async def test_a_batch_is_written_in_windows(tmp_path: Path) -> None:
    """In the order of its lines, over several pieces of its input; a line that an engine fails is tried again, and fails alone."""
    with SqlitePlace(tmp_path).open() as store:
        answering = Answering()
        batch, tools = await begun(store, tmp_path, answering)
        await Shift(batch, tools).run()
        ended = tools.batches.find(CALLER.tenant_id, batch.id)
        outputs = await written(tools, ended.output.file_id)
        errors = await written(tools, ended.errors.file_id)

    assert (ended.status, ended.total, ended.done, ended.failed) == (Status.COMPLETED, LINES, LINES, 1)
    assert [it["custom_id"] for it in outputs] == [str(number) for number in range(LINES) if number != 107]
    assert [(it["custom_id"], it["line"]) for it in errors] == [("107", 108)]
    assert ended.output.pieces >= 2 and ended.usage == Usage(LINES - 1 + 1, LINES)
    assert answering.asked[107] == 3 and answering.asked[7] == 2 and answering.asked[0] == 1
    assert answering.at_once < WINDOW_LINES + 20 < AHEAD_LINES


async def test_a_batch_that_expires_names_what_it_did_not_get_to(tmp_path: Path) -> None:
    """Lines that are done stay done; its file is read to the end, though that has expired too."""
    clock = Clock(1_795_000_000.0)
    with SqlitePlace(tmp_path).open() as store:
        batch, tools = await begun(store, tmp_path, Answering(), clock)
        clock.advance(WINDOW_S)
        shift = Shift(msgspec.structs.replace(batch, in_progress_at=0.0, total=LINES, model="m"), tools)
        shift.stop(Status.EXPIRED)
        await shift.run()
        ended = tools.batches.find(CALLER.tenant_id, batch.id)
        errors = await written(tools, ended.errors.file_id)

    assert (ended.status, ended.failed, ended.output.bytes) == (Status.EXPIRED, LINES, 0)
    assert {it["error"]["code"] for it in errors} == {"batch_expired"} and len(errors) == LINES


@pytest.mark.parametrize("ending", [None, Status.CANCELLED])
async def test_a_line_that_cannot_be_read_any_more_ends_its_batch(tmp_path: Path, ending: Status | None) -> None:
    """Such as one that was in order where lines may be longer: what is done stays, and the error names the line."""
    with SqlitePlace(tmp_path).open() as store:
        batch, tools = await begun(store, tmp_path, Answering())
        tools.batches.begin(batch, LINES, "m")
        batch = msgspec.structs.replace(batch, in_progress_at=0.0, total=LINES, model="m")
        tools.batches.keep(batch, Done(Line(5, 6, 0, b""), b'{"custom_id": "5"}\n', is_failed=False))
        shift = Shift(batch, msgspec.structs.replace(tools, line_bytes_max=100))
        if ending is not None:
            shift.stop(ending)
        await shift.run()
        ended = tools.batches.find(CALLER.tenant_id, batch.id)
        outputs = await written(tools, ended.output.file_id)

    assert (ended.status, ended.failed) == (ending or Status.FAILED, LINES - 1)
    assert [(it.code, it.line) for it in ended.said.faults] == [("line_too_long", 1)]
    assert [it["custom_id"] for it in outputs] == ["5"]


async def test_a_batch_that_was_never_checked_ends_as_it_is_ended(tmp_path: Path) -> None:
    """One that no gateway got to within its time has expired; no client has cancelled it."""
    for ending in (Status.EXPIRED, Status.CANCELLED):
        home = tmp_path / ending
        home.mkdir()
        with SqlitePlace(home).open() as store:
            batch, tools = await begun(store, home, Answering())
            shift = Shift(batch, tools)
            shift.stop(ending)
            await shift.run()
            assert tools.batches.find(CALLER.tenant_id, batch.id).status is ending


async def test_a_fault_of_ours_cancels_no_line(tmp_path: Path) -> None:
    """Lines that were not called because of it are called when the batch is taken up again."""
    with SqlitePlace(tmp_path).open() as store:
        answering = Answering()
        answering.breaks_at = 50
        batch, tools = await begun(store, tmp_path, answering)
        with pytest.raises(ZeroDivisionError):
            await Shift(batch, tools).run()
        assert tools.batches.find(CALLER.tenant_id, batch.id).status is Status.IN_PROGRESS
        answering.breaks_at = None
        again = tools.batches.take(tools.batches.open_ones()[0], "two")
        assert again is not None
        await Shift(again, tools).run()
        ended = tools.batches.find(CALLER.tenant_id, batch.id)

    assert (ended.status, ended.done, ended.failed) == (Status.COMPLETED, LINES, 1)


async def test_a_file_that_is_lost_in_part_ends_its_batch(tmp_path: Path) -> None:
    """What was answered is in its files, whichever side of the loss it stands; the error names the first line that cannot be read."""
    with SqlitePlace(tmp_path).open() as store:
        answering = Answering()
        batch, tools = await begun(store, tmp_path, answering)
        tools.batches.begin(batch, LINES, "m")
        batch = msgspec.structs.replace(batch, in_progress_at=0.0, total=LINES, model="m")
        last = Line(LINES - 1, LINES, 0, b"")
        tools.batches.keep(batch, Done(last, b'{"custom_id": "the last"}\n', is_failed=False))
        (tmp_path / "files" / batch.input_file_id / "00000001").unlink()
        await Shift(batch, tools).run()
        ended = tools.batches.find(CALLER.tenant_id, batch.id)
        outputs = await written(tools, ended.output.file_id)

    (fault,) = ended.said.faults
    read = len(answering.asked)
    assert (ended.status, fault.code, fault.line) == (Status.FAILED, "invalid_input_file", read + 1) and read > 100
    answered = [str(number) for number in range(read) if number != 107]
    assert [it["custom_id"] for it in outputs] == [*answered, "the last"]
    assert (ended.done, ended.failed, ended.total) == (LINES, LINES - len(outputs), LINES)


async def test_a_loss_while_a_file_is_checked_is_a_fault_of_the_file(tmp_path: Path) -> None:
    """So is a piece that was changed. Nothing was called."""
    with SqlitePlace(tmp_path).open() as store:
        answering = Answering()
        batch, tools = await begun(store, tmp_path, answering)
        (tmp_path / "files" / batch.input_file_id / "00000001").write_bytes(b"\x01" * 200)
        await Shift(batch, tools).run()
        ended = tools.batches.find(CALLER.tenant_id, batch.id)

    assert (ended.status, [it.code for it in ended.said.faults]) == (Status.FAILED, ["invalid_input_file"])
    assert not answering.asked


async def test_a_folder_that_is_away_is_no_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However long: the batch goes on when it is back."""
    with SqlitePlace(tmp_path).open() as store:
        batch, tools = await begun(store, tmp_path, Answering())
        (tmp_path / "files").rename(tmp_path / "away")
        (tmp_path / "files").mkdir()
        running = asyncio.create_task(Shift(batch, tools).run())
        await until(lambda: running.done() or len(caplog.records) > 2 * LOSSES_MAX)
        assert not running.done()
        (tmp_path / "files").rmdir()
        (tmp_path / "away").rename(tmp_path / "files")
        await running
        assert tools.batches.find(CALLER.tenant_id, batch.id).status is Status.COMPLETED


async def test_a_batch_is_stalled_where_nothing_holds_it_back(tmp_path: Path) -> None:
    """As long as its lines wait for other calls, or are refused by a limit, it is not."""
    clock, waiting = Clock(1_795_000_000.0), [0]
    with SqlitePlace(tmp_path).open() as store:
        batch, tools = await begun(store, tmp_path, Answering(), clock)
        spare = Spare(lambda model: ([EngineLoad()], waiting[0]), 1e12, clock)
        with await spare.place("m", "t1", 1):
            tools = msgspec.structs.replace(tools, clock=clock, spare=spare)
            shift = Shift(msgspec.structs.replace(batch, in_progress_at=0.0, total=LINES, model="m"), tools)
            seen = []
            for waiting[0] in (0, 1, 0):
                clock.advance(100)
                seen.append(shift.stalled_s())
    assert seen == [100, 0, 100] and (shift.stage, shift.left) == (Status.IN_PROGRESS, LINES)


async def begun(store: Store, home: Path, answering: Answering, clock: Clock | None = None) -> tuple[Batch, Tools]:
    """A batch of `LINES` lines in two pieces, which this gateway has."""
    clock = clock or Clock(1_795_000_000.0)
    files, vault = files_of(store, home, clock), Vault.at(home, may_make=True)
    batches = Batches(FileSettings(), store, vault, files, clock)
    filler = "x" * (PIECE_BYTES // LINES)
    calls = b"".join(
        json.dumps(
            {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/embeddings",
                "body": {"model": "m", "input": number, "filler": filler},
            }
        ).encode()
        + b"\n"
        for number in range(LINES)
    )
    cipher = await files.begin(brought_by(CALLER, "in"), len(calls))
    pieces = [calls[first : first + PIECE_BYTES] for first in range(0, len(calls), PIECE_BYTES)]
    for number, piece in enumerate(pieces):
        await files.shelf.put(cipher, number, piece)
    await files.finish(cipher, len(calls), len(pieces))
    assert len(pieces) == 2
    batches.create(CALLER, "/v1/embeddings", cipher.file_id, Said())
    (sign,) = batches.open_ones()
    batch = batches.take(sign, "one")
    assert batch is not None
    spare = Spare(lambda model: ([EngineLoad()] * 8, 0), 1e12, time.monotonic)
    tools = Tools(batches, files, Desk(), spare, answering, 10_000, 100_000, time.monotonic, retry_s=0.002)
    return batch, tools


async def written(tools: Tools, file_id: str) -> list[dict[str, Any]]:
    file = await tools.files.find(CALLER.tenant_id, file_id)
    content = b"".join([it async for it in tools.files.content(file)])
    assert len(content) == file.bytes
    return [json.loads(it) for it in content.splitlines()]
