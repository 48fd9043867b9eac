"""Shift: one batch at the gateway that has it, from its file to its files. What is done is in the database; all else can be done again.

check the file → call its lines, as far as they are not done → write what is done into its files, in order → end
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from serving.errors import (
    ApiError,
    ContentLost,
    QuotaExceeded,
    RateLimitExceeded,
    ResourceNotFound,
    StoreUnavailable,
    VaultFailed,
)
from serving.gateway.http.bodies import OpenAIError
from serving.gateway.ledger.ledger import Beside
from serving.gateway.nouns import Usage
from serving.gateway.stored.batches import results
from serving.gateway.stored.batches.batches import (
    Batch,
    Batches,
    Done,
    LeaseLost,
    Output,
    Status,
    Written,
    new_request_id,
    summed,
)
from serving.gateway.stored.batches.brake import Brake
from serving.gateway.stored.batches.checking import Checker, Fault
from serving.gateway.stored.batches.jsonl import (
    START,
    Line,
    Place,
    Request,
    Splitter,
    lines,
    not_for_a_batch,
    request_of,
)
from serving.gateway.stored.batches.results import Problem
from serving.gateway.stored.batches.spare import Spare
from serving.gateway.stored.desk import Desk
from serving.gateway.stored.files.files import TenantFiles
from serving.gateway.stored.files.pieces import PIECE_BYTES

#: Lines of one batch that are in memory, and their bytes, to be called or being called.
WINDOW_LINES = 128
WINDOW_BYTES = 8 * 1024 * 1024
#: Lines behind the first that is not done that are begun: what is done waits in the database until it can be written in order.
AHEAD_LINES = 4096
#: Lines that are written into a batch's files together.
TOGETHER_LINES = 256
#: Bytes of a call's body that are taken for a token of its prompt.
BYTES_PER_TOKEN = 4
#: Attempts at a line that an engine failed.
ATTEMPTS_MAX = 3
#: Seconds between two attempts at what the database or the folder of files does not take.
RETRY_S = 2.0
#: Attempts at what is lost, as it seems, with pauses that grow to so many times the above: some five minutes (BAT-6).
LOSSES_MAX, PAUSES_MAX = 10, 30

log = logging.getLogger(__name__)

T = TypeVar("T")


class _Unreadable(Exception):
    """Content that a batch needs is lost."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault


class Answer(Protocol):
    """How a line's call ended."""

    @property
    def status(self) -> int: ...

    @property
    def body(self) -> bytes: ...

    @property
    def usage(self) -> Usage: ...

    @property
    def error(self) -> ApiError | None: ...

    @property
    def is_kept(self) -> bool: ...


#: Of an answer, what is written with its cost; None where it is not kept.
Keep = Callable[[Answer], Beside | None]


class Calls(Protocol):
    """The way of a line through the gateway."""

    async def require(self, batch: Batch, model: str) -> None:
        """Raises ApiError where who gave the batch may not call this model, or no one may."""
        ...

    async def call(self, batch: Batch, body: bytes, request_id: str, keep: Keep) -> Answer:
        """Call once. Raises Unauthenticated and Forbidden where who gave the batch may call no more."""
        ...

    def waits(self, error: ApiError) -> bool:
        """Is it a refusal that passes, and none of this line?"""
        ...

    def engines_of(self, model: str) -> str:
        """The model whose engines serve it."""
        ...


class Tools(msgspec.Struct, frozen=True):
    """What every shift of a gateway works with."""

    batches: Batches
    files: TenantFiles
    desk: Desk
    spare: Spare
    calls: Calls
    lines_max: int
    line_bytes_max: int
    #: Monotonic.
    clock: Callable[[], float]
    retry_s: float = RETRY_S


class Shift:
    """One batch. `run` returns when it has ended, or another gateway has it."""

    def __init__(self, batch: Batch, tools: Tools) -> None:
        self.batch = batch
        self._tools = tools
        self._brake = Brake(tools.clock)
        #: How it ends, once no more of its lines is to be begun.
        self._ending: Status | None = batch.ending
        self._why: Fault | None = None
        #: This gateway stops.
        self._is_leaving = False
        self._feeding: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        #: Those of them that are not at an engine.
        self._idle: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None
        self._held_bytes = 0
        self._room = asyncio.Event()
        #: Enough lines are done to be written.
        self._due = asyncio.Event()
        #: Lines that are done, behind those that are written.
        self._done: set[int] = set()
        self._place = batch.place
        self._next = batch.place.number
        #: Lines of its file that have been read, blank ones included.
        self._read = batch.place.lines
        self._is_finishing = False
        #: Nothing more is due to be written before the end.
        self._is_written_out = False
        #: The last refusal was by a limit.
        self._is_limited = False
        self._moved_at = tools.clock()
        #: Lines that were done here, and how many of them failed.
        self.done_count = self.failed_count = 0

    @property
    def stage(self) -> Status:
        """Where it is."""
        if self._ending is Status.CANCELLED:
            return Status.CANCELLING
        if self._is_finishing:
            return Status.FINALIZING
        return Status.VALIDATING if self.batch.in_progress_at is None else Status.IN_PROGRESS

    @property
    def left(self) -> int:
        """Lines that are not done."""
        return max(0, self.batch.total - self._next - len(self._done))

    def stalled_s(self) -> float:
        """Seconds for which it has not moved, though no limit held it back and engines had room, as often as this is asked."""
        now, tools = self._tools.clock(), self._tools
        is_held_back = self._is_limited or not tools.spare.has_room(tools.calls.engines_of(self.batch.model or ""))
        if self.stage is Status.IN_PROGRESS and is_held_back:
            self._moved_at = now
        return now - self._moved_at

    def stop(self, ending: Status, why: Fault | None = None) -> None:
        """Begin no more of its lines; those at engines are waited for."""
        if self._ending is None:
            self._ending, self._why = ending, why
        self._begin_none()

    def leave(self) -> None:
        """The same, and the batch goes on elsewhere."""
        self._is_leaving = True
        self._begin_none()

    def _begin_none(self) -> None:
        if self._feeding is not None:
            self._feeding.cancel()
        for task in self._idle:
            task.cancel()

    async def run(self) -> None:
        """Raises LeaseLost."""
        try:
            if self.batch.in_progress_at is None and not await self._checked():
                return
            await self._performed()
        finally:
            await self._give_up()

    async def _performed(self) -> None:
        try:
            if self._ending is None:
                await self._work()
            if not self._is_leaving:
                await self._finish(self._ending or Status.COMPLETED)
        except _Unreadable as lost:
            if not self._is_leaving:
                await self._salvage(lost.fault)

    async def _give_up(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _checked(self) -> bool:
        """Is there something to run?"""
        batch, tools = self.batch, self._tools
        if self._ending is not None:
            await self._end(self._ending)
            return False
        with Checker(batch.endpoint, tools.lines_max) as checker:
            await self._look_through(checker)
            faults = checker.faults or await self._faults_of_model(checker.model or "")
            if faults:
                await self._lasting(lambda: tools.desk.done(tools.batches.fail, batch, faults))
                return False
            total, model = checker.total, checker.model or ""
        await self._lasting(lambda: tools.desk.done(tools.batches.begin, batch, total, model))
        self.batch = msgspec.structs.replace(batch, total=total, model=model, in_progress_at=0.0)
        return True

    async def _look_through(self, checker: Checker) -> None:
        splitter = Splitter(START, self._tools.line_bytes_max)
        try:
            async for piece in self._input(START):
                await asyncio.to_thread(checker.look, list(splitter.feed(piece)))
                self._read = splitter.lines
                self._moved_at = self._tools.clock()
                if checker.is_hopeless:
                    return
        except _Unreadable as lost:
            checker.faults.append(lost.fault)
            return
        await asyncio.to_thread(checker.look, list(splitter.rest()))
        checker.end()

    async def _faults_of_model(self, model: str) -> list[Fault]:
        try:
            await self._lasting(lambda: self._tools.calls.require(self.batch, model))
        except ApiError as error:
            return [Fault(error.code or error.type, error.message, "body.model", 1)]
        return []

    async def _input(self, place: Place) -> AsyncIterator[bytes]:
        """The input file's pieces, from the one on in which a place is."""
        tools, first = self._tools, place.bytes // PIECE_BYTES
        try:
            file = await self._lasting(lambda: tools.files.input_of(self.batch.tenant_id, self.batch.input_file_id))
            for number in range(first, file.pieces):
                yield await self._lasting(lambda: tools.files.shelf.get(file.cipher, number))  # noqa: B023 At once.
        except (ResourceNotFound, _Unreadable):
            raise _Unreadable(_lost_from(self._read + 1)) from None

    async def _lines(self, place: Place) -> AsyncIterator[Line]:
        self._read = place.lines
        async for line in lines(self._input(place), place, self._tools.line_bytes_max, place.bytes % PIECE_BYTES):
            self._read = line.line
            yield line

    async def _work(self) -> None:
        """Call its lines until there are no more, or it is stopped."""
        tools = self._tools
        self._done = await self._lasting(lambda: tools.desk.done(tools.batches.done_numbers, self.batch))
        self._advance()
        self._feeding = asyncio.create_task(self._feed())
        writing = asyncio.create_task(self._write())
        try:
            await asyncio.wait([self._feeding, writing], return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
            error = None if self._feeding.cancelled() else self._feeding.exception()
            if error is not None and not isinstance(error, _Unreadable):
                raise error
            # Of a file that is lost in part, the lines before are answered still.
            while self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._bug is not None:
                # Its other lines are not to be told that they were cancelled: they are called by whoever takes it up again.
                raise self._bug
            if not self._is_leaving:
                # What is half written when the end is, is lost: a thread goes on with it that is not waited for.
                self._is_written_out = True
                self._due.set()
                await writing
            if error is not None and self._next < self.batch.total:
                raise error
        finally:
            self._feeding.cancel()
            writing.cancel()
            await asyncio.wait([writing])

    async def _feed(self) -> None:
        async for line in self._lines(self._place):
            if line.number in self._done or line.number < self._next:
                continue
            size = len(line.raw or b"")
            while not self._has_room(line.number, size):
                self._room.clear()
                await self._room.wait()
            self._held_bytes += size
            task = asyncio.create_task(self._called(line))
            self._tasks.add(task)
            self._idle.add(task)
            task.add_done_callback(self._ended(size))

    def _has_room(self, number: int, size: int) -> bool:
        is_near = number < self._place.number + AHEAD_LINES
        has_bytes = not self._held_bytes or self._held_bytes + size <= WINDOW_BYTES
        return is_near and has_bytes and len(self._tasks) < WINDOW_LINES

    def _ended(self, size: int) -> Callable[[asyncio.Task[None]], None]:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._idle.discard(task)
            self._held_bytes -= size
            self._room.set()
            if not task.cancelled() and (error := task.exception()) is not None:
                self._bug = self._bug or error
                self._begin_none()

        return ended

    async def _called(self, line: Line) -> None:
        """Call a line until its answer is kept."""
        request, task, attempts = _read(line), asyncio.current_task(), 0
        if (param := not_for_a_batch(request.body)) is not None:
            if task is not None:
                self._idle.discard(task)
            error = _unfit(param)
            text = results.refused(line, request, new_request_id(), error)
            await self._keep(Done(line, text, is_failed=True))
            return
        is_kept = False
        try:
            while not is_kept and self._ending is None and not self._is_leaving:
                await self._brake.passed(line)
                engines = self._tools.calls.engines_of(self.batch.model or "")
                tokens = len(request.body) // BYTES_PER_TOKEN
                place = await self._tools.spare.place(engines, self.batch.tenant_id, tokens)
                with place:
                    if task is not None:
                        self._idle.discard(task)
                    attempts += 1
                    is_kept = await self._tried(line, request, attempts)
                if task is not None:
                    self._idle.add(task)
        finally:
            self._brake.left(line)

    async def _tried(self, line: Line, request: Request, attempts: int) -> bool:
        """Call a line once; was its answer kept?"""
        tools, request_id = self._tools, new_request_id()
        made: list[Done] = []

        def keep(answer: Answer) -> Beside | None:
            if answer.error is not None and self._is_tried_again(answer.error, attempts):
                return None
            text = results.rendered(line, request, request_id, answer.status, answer.body)
            made.append(Done(line, text, answer.error is not None, answer.usage))
            return tools.batches.keeping(self.batch, made[0])

        try:
            answer = await tools.calls.call(self.batch, bytes(request.body), request_id, keep)
        except StoreUnavailable as error:
            self._brake.refused(error.retry_after_s)
            return False
        except ApiError as error:
            # Who gave the batch may call no more.
            self.stop(Status.CANCELLED, Fault(error.code or error.type, error.message))
            return False
        if not made:
            if answer.error is not None:
                self._is_limited = isinstance(answer.error, RateLimitExceeded | QuotaExceeded)
                self._brake.refused(answer.error.retry_after_s)
            return False
        self._brake.got_through()
        self._is_limited = False
        if answer.is_kept:
            self._note(made[0])
        else:
            await self._keep(made[0])
        return True

    def _is_tried_again(self, error: ApiError, attempts: int) -> bool:
        return self._tools.calls.waits(error) or (error.status >= 500 and attempts < ATTEMPTS_MAX)

    async def _keep(self, done: Done) -> None:
        tools = self._tools
        await self._lasting(lambda: tools.desk.done(tools.batches.keep, self.batch, done))
        self._note(done)

    def _note(self, done: Done) -> None:
        self._done.add(done.line.number)
        self.done_count += 1
        self.failed_count += done.is_failed
        self._moved_at = self._tools.clock()
        self._advance()

    def _advance(self) -> None:
        """How far lines are done that follow one another."""
        while self._next in self._done:
            self._done.discard(self._next)
            self._next += 1
        if self._next - self._place.number >= TOGETHER_LINES:
            self._room.set()
            self._due.set()

    async def _write(self) -> None:
        """Write what is done into the batch's files, in the order of its lines, whenever it is enough."""
        tools = self._tools
        while not self._is_written_out:
            await self._due.wait()
            self._due.clear()
            while self._next - self._place.number >= TOGETHER_LINES:
                found = await self._lasting(
                    lambda: tools.desk.done(
                        tools.batches.done_lines, self.batch, self._place.number, TOGETHER_LINES, PIECE_BYTES
                    )
                )
                if not found:
                    raise LeaseLost
                await self._append(found, behind=found[-1].line.number + 1)
                self._room.set()

    async def _append(self, found: Sequence[Done], behind: int) -> None:
        """Put lines into the files. Those before `behind` that are not among them have failed."""
        batch, tools = self.batch, self._tools
        output = await self._put(batch.output, [done.text for done in found if not done.is_failed])
        errors = await self._put(batch.errors, [done.text for done in found if done.is_failed])
        usage = batch.usage
        for done in found:
            usage = summed(usage, done.usage)
        place = msgspec.structs.replace(self._place, number=behind)
        if found:
            place = Place(behind, found[-1].line.line, found[-1].line.ends_at)
        failed = batch.failed + behind - self._place.number - sum(not done.is_failed for done in found)
        written = Written(place, place.number, failed, usage, output, errors)
        await self._lasting(lambda: tools.desk.done(tools.batches.append, batch, written))
        self._place, self._moved_at = place, tools.clock()
        self.batch = msgspec.structs.replace(
            batch, place=place, done=place.number, failed=failed, usage=usage, output=output, errors=errors
        )

    async def _put(self, output: Output, texts: list[bytes]) -> Output:
        if not texts:
            return output
        piece, shelf = b"".join(texts), self._tools.files.shelf
        await self._lasting(lambda: shelf.put(self.batch.cipher_of(output), output.pieces, piece))
        return Output(output.file_id, output.bytes + len(piece), output.pieces + 1)

    async def _finish(self, ending: Status) -> None:
        """Write the rest, lines included that were not got to, and end the batch."""
        tools, self._is_finishing = self._tools, True
        if self._why is not None:
            self._say(self._why)
        await self._lasting(lambda: tools.desk.done(tools.batches.finalize, self.batch, ending))
        if ending is Status.FAILED:
            raise _Unreadable(_LOST)
        block: list[Line] = []
        held = 0
        async for line in self._lines(self._place):
            block.append(line)
            held += len(line.raw or b"")
            if len(block) >= TOGETHER_LINES or held >= PIECE_BYTES:
                await self._finish_lines(block, ending)
                block, held = [], 0
        await self._finish_lines(block, ending)
        await self._end(ending)

    async def _end(self, ending: Status) -> None:
        batch, tools, written = self.batch, self._tools, _written(self.batch)
        await self._lasting(lambda: tools.desk.done(tools.batches.end, batch, written, ending))

    def _say(self, why: Fault) -> None:
        """Why it ends, unless that is said."""
        said = msgspec.structs.replace(self.batch.said, faults=self.batch.said.faults or (why,))
        self.batch = msgspec.structs.replace(self.batch, said=said)

    async def _finish_lines(self, block: list[Line], ending: Status) -> None:
        if not block:
            return
        tools, first = self._tools, block[0].number
        done = await self._lasting(lambda: tools.desk.done(tools.batches.done_among, self.batch, first, len(block)))
        problem = results.EXPIRED if ending is Status.EXPIRED else results.CANCELLED
        found = [done.get(line.number) or _left(line, problem) for line in block]
        await self._append(found, behind=block[-1].number + 1)

    async def _salvage(self, why: Fault) -> None:
        """Write what is done, without what is lost, and end the batch: its other lines have failed, and cannot be named."""
        tools, ending = self._tools, self._ending or Status.FAILED
        if self._ending is None:
            self._say(why)
            await self._lasting(lambda: tools.desk.done(tools.batches.finalize, self.batch, ending))
        lost = self.batch.total - self._place.number
        while found := await self._lasting(
            lambda: tools.desk.done(
                tools.batches.done_behind, self.batch, self._place.number, TOGETHER_LINES, PIECE_BYTES
            )
        ):
            lost -= len(found)
            await self._append(found, behind=found[-1].line.number + 1)
        if lost:
            ending = Status.FAILED if ending is Status.COMPLETED else ending
            self._say(why)
            await self._append([], behind=self.batch.total)
        await self._end(ending)

    async def _lasting(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` returns, once the database and the folder of files, or the object store, take it.

        Those that are away are waited for; raises _Unreadable when they are there and what they are asked for is lost.
        """
        losses = 0
        while True:
            try:
                return await work()
            except StoreUnavailable as error:
                reason = error.reason
            except (ContentLost, VaultFailed) as error:
                losses += 1
                reason = error.reason if isinstance(error, VaultFailed) else "bytes of its file are gone"
                if losses >= LOSSES_MAX:
                    log.error("batch %s: %s", self.batch.id, reason)
                    raise _Unreadable(_LOST) from None
            log.warning("batch %s waits: %s", self.batch.id, reason)
            await asyncio.sleep(self._tools.retry_s * min(2 ** max(losses - 1, 0), PAUSES_MAX))


_LOST = Fault("content_lost", "Answers of this batch cannot be read any more.")


def _lost_from(line: int) -> Fault:
    said = f"The input file cannot be read from line {line} on: its content is lost."
    return Fault("invalid_input_file", said, "input_file_id", line)


def _left(line: Line, problem: Problem) -> Done:
    return Done(line, results.left(line, _read(line), new_request_id(), problem), is_failed=True)


def _read(line: Line) -> Request:
    """What a line says. Raises _Unreadable where it is longer than it may be now, or nested too deeply to be read here."""
    if line.raw is None:
        raise _Unreadable(Fault("line_too_long", "This line is longer than a request may be.", line=line.line))
    try:
        return request_of(line.raw)
    except RecursionError:
        raise _Unreadable(Fault("invalid_json_line", "This line is nested too deeply.", line=line.line)) from None


def _written(batch: Batch) -> Written:
    return Written(batch.place, batch.done, batch.failed, batch.usage, batch.output, batch.errors)


def _unfit(param: str) -> OpenAIError:
    said = f"A batch's answers are whole, and are waited for: '{param}' must be false."
    return OpenAIError(message=said, type="invalid_request_error", param=param, code=None)
