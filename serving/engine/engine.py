"""Engine: one supervised vLLM server, as its replica handles it: start, probe, stop.

Ready means that it has generated a token and makes sense of known texts: `/health` also answers 200 on engines that crash at
their first request, and on engines that talk nonsense.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import math
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
import msgspec

from serving.catalog.sanity import PASSAGE, Sanity
from serving.config import PlaneTls
from serving.engine import command, driver, leftovers, processes, sense
from serving.engine.adapters import Shelf
from serving.engine.command import ONLY_MEMBER, EngineSpec, Member
from serving.engine.figures import READ_METRICS, Look, parse_look
from serving.engine.members import expected_members
from serving.engine.vitals import Vitals
from serving.errors import ServingError
from serving.plane_tls import client_context
from serving.secret import PlaneSecret
from serving.wire import EngineLoad, Task

#: Seconds between two polls of an engine that is starting.
_POLL_INTERVAL_S = 0.25
#: Seconds one probe of a running engine may take.
_PROBE_TIMEOUT_S = 5.0
#: Seconds the first token may take: kernels are chosen and caches filled on the way.
_FIRST_TOKEN_TIMEOUT_S = 120.0
#: Seconds for which a question of its replica may still be among an engine's figures after its answer.
_QUESTION_LINGERS_S = 1.0
#: Seconds for which a token is awaited that tells whether a running engine still works.
_ASKED_TOKEN_TIMEOUT_S = 60.0
#: Seconds after the first token within which every process of the engine must have been seen.
_JOIN_TIMEOUT_S = 5.0
#: Engine logs of one model that are kept.
_KEPT_LOGS = 10
#: Bytes at the end of vLLM's log, where it prints its loading progress.
_LOG_TAIL_BYTES = 8192
_LOADED = re.compile(rb"checkpoint shards: +(\d+)% Completed")

#: The page of an engine's metrics, and on it those that are read (CELL-26).
_LOOK = f"/metrics?{urlencode([('name[]', name) for name in READ_METRICS])}"
#: vLLM's header that names the data rank a call is for.
_DATA_RANK_HEADER = "X-data-parallel-rank"


class Senseless(ServingError):
    """What the engine says makes no sense; the text says how, in one clause."""


class Refused(ServingError):
    """The engine refused to answer what it was asked about a known text."""


class Unanswered(ServingError):
    """The engine did not answer in time, or not at all."""


class EngineDied(ServingError):
    """The engine's process tree is gone; the text says why in one sentence without internal details."""


class Engine:
    """A running process tree, made and ended by `running()` alone."""

    def __init__(
        self,
        spec: EngineSpec,
        member: Member,
        port: int,
        log: Path,
        supervisor: asyncio.subprocess.Process,
        shelf: Shelf | None,
    ) -> None:
        self.url = f"{'https' if spec.tls else 'http'}://{spec.settings.host}:{port}"
        #: Its adapters, where it has room for any.
        self.shelf = shelf
        self._spec = spec
        self._member = member
        self._log = log
        self._supervisor = supervisor
        self._supervisor_id = supervisor.pid
        #: What the supervisor reports, one event a line; a pipe was asked for, so there is one.
        self._events = supervisor.stdout or asyncio.StreamReader()
        self._secret = PlaneSecret(Path(spec.secret_file))
        self._client = aiohttp.ClientSession(self.url, connector=_connector(spec.tls))
        self._members: Counter[str] = Counter()
        self._ending = asyncio.ensure_future(self._wait_for_end())
        #: What its replica's own questions have cost.
        self.own = sense.Cost()
        #: Questions of its own replica that it is answering, and when the last one ended.
        self._questions = 0
        self._questioned_at = -math.inf

    @property
    def is_dead(self) -> bool:
        return self._ending.done()

    async def death(self) -> str:
        """Wait until the last process of the tree is gone; returns why it ended."""
        return await asyncio.shield(self._ending)

    async def until_listening(self) -> None:
        """Return when the server answers `/health`; raises EngineDied."""
        while not await self.is_healthy():
            if self.is_dead:
                raise EngineDied(self._ending.result())
            await asyncio.sleep(_POLL_INTERVAL_S)

    async def require_members(self) -> None:
        """Raise EngineDied unless every expected process has joined: vLLM drops some options silently.

        The supervisor polls twice a second, so it may report the last ones a moment later.
        """
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT_S):
                await self.until_joined()
        except TimeoutError:
            raise EngineDied(f"the engine started without {', '.join(sorted(self._missing()))}") from None

    async def until_joined(self) -> None:
        """Return when every expected process has joined, on a node without an HTTP server; raises EngineDied."""
        while self._missing():
            if self.is_dead:
                raise EngineDied(self._ending.result())
            await asyncio.sleep(_POLL_INTERVAL_S)

    def progress(self) -> str | None:
        """Share of the weights that vLLM says it has loaded (`45%`); None while it says nothing about them."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, self._log.stat().st_size - _LOG_TAIL_BYTES))
                loaded = _LOADED.findall(log.read())
        except OSError:
            return None
        return f"{loaded[-1].decode()}%" if loaded else None

    async def is_healthy(self) -> bool:
        """Does `/health` answer 200?"""
        try:
            async with self._client.get("/health", timeout=aiohttp.ClientTimeout(_PROBE_TIMEOUT_S)) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def first_token(self) -> None:
        """Have the engine generate one token, or one embedding; raises EngineDied when it cannot."""
        timeout = aiohttp.ClientTimeout(_FIRST_TOKEN_TIMEOUT_S)
        try:
            status = await self._one_token(timeout, self._headers())
        except (aiohttp.ClientError, TimeoutError):
            raise EngineDied("the engine did not survive its first request") from None
        if status != 200:
            raise EngineDied(f"the engine answered its first request with status {status}")

    async def require_sense(self, core: int, timeout_s: float, *, is_in_use: bool) -> bool:
        """Raise Senseless unless a core makes sense of fixed texts; False where that cannot be told.

        One with room for adapters that others may call meanwhile only goes on with a text (`sense.scoring` says why). Raises
        Unanswered when it does not answer.
        """
        sanity = self._spec.sanity
        if sanity is None:
            return False
        timeout = aiohttp.ClientTimeout(timeout_s)
        try:
            why = await self._nonsense(sanity, core, timeout, is_scored=self.shelf is None or not is_in_use)
        except Refused:
            return False
        except msgspec.DecodeError:
            raise Senseless("its answer about a known text is none") from None
        if why:
            raise Senseless(why)
        return True

    async def _nonsense(
        self, sanity: Sanity, core: int, timeout: aiohttp.ClientTimeout, *, is_scored: bool
    ) -> str | None:
        if self._spec.task is Task.EMBED:
            answer = await self._asked("/v1/embeddings", sense.embedding(self._spec.model, sanity), core, timeout)
            return sense.unrelated(sanity, sense.embeddings(answer))
        if is_scored and (why := await self._unlikely(sanity, core, timeout)):
            return why
        answer = await self._asked("/v1/completions", sense.continuing(self._spec.model, sanity), core, timeout)
        return sense.discontinued(sanity, sense.text(answer))

    async def _unlikely(self, sanity: Sanity, core: int, timeout: aiohttp.ClientTimeout) -> str | None:
        scored = await self.log_likelihoods(core, timeout)
        if scored is None:
            raise Refused
        return sense.unlikely(sanity, scored)

    async def log_likelihoods(self, core: int, timeout: aiohttp.ClientTimeout) -> tuple[float, ...] | None:
        """Of the passage's tokens; None where the engine gives none."""
        body = sense.scoring(self._spec.model, self._passage)
        return sense.log_likelihoods(await self._asked("/v1/completions", body, core, timeout))

    async def next_logprobs(
        self, model: str, core: int, timeout: aiohttp.ClientTimeout
    ) -> list[dict[str, float]] | None:
        """Of what the model, or an adapter of it, may say after the passage; None where the engine gives none."""
        body = sense.going_on(model, self._passage, uuid.uuid4().hex)
        return sense.next_logprobs(await self._asked("/v1/completions", body, core, timeout))

    @property
    def _passage(self) -> str:
        return self._spec.sanity.passage if self._spec.sanity else PASSAGE

    async def _asked(self, route: str, body: dict[str, object], core: int, timeout: aiohttp.ClientTimeout) -> bytes:
        """The body of a 200; raises Refused on a 4xx, and Unanswered."""
        headers = self._headers() | {_DATA_RANK_HEADER: str(core)}
        try:
            async with (
                self._question(),
                self._client.post(route, json=body, headers=headers, timeout=timeout) as answer,
            ):
                if 400 <= answer.status < 500:
                    raise Refused(f"status {answer.status}")
                if answer.status != 200:
                    self.own = self.own.without_answer()
                    raise Unanswered(f"the engine answered a question about a known text with status {answer.status}")
                return self._paid(await answer.read())
        except (aiohttp.ClientError, TimeoutError):
            self.own = self.own.without_answer()
            raise Unanswered("the engine did not answer a question about a known text") from None

    @asynccontextmanager
    async def _question(self) -> AsyncIterator[None]:
        self._questions += 1
        try:
            yield
        finally:
            self._questions -= 1
            self._questioned_at = time.monotonic()

    @property
    def own_requests(self) -> int:
        """How many of its requests may be questions of its own replica, which are no load."""
        is_fresh = time.monotonic() - self._questioned_at < _QUESTION_LINGERS_S
        return max(self._questions, int(is_fresh))

    async def gives_a_token(self, core: int) -> bool:
        """Does this core generate one token, or one embedding, within a minute?"""
        headers = self._headers() | {_DATA_RANK_HEADER: str(core)}
        try:
            async with self._question():
                return await self._one_token(aiohttp.ClientTimeout(_ASKED_TOKEN_TIMEOUT_S), headers) == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _one_token(self, timeout: aiohttp.ClientTimeout, headers: dict[str, str]) -> int:
        body: dict[str, str | int] = {"model": self._spec.model}
        if self._spec.task is Task.EMBED:
            route, body = "/v1/embeddings", body | {"input": "a"}
        else:
            route, body = "/v1/completions", body | {"prompt": "a", "max_tokens": 1}
        try:
            async with self._client.post(route, json=body, headers=headers, timeout=timeout) as answer:
                if answer.status == 200:
                    self._paid(await answer.read())
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            self.own = self.own.without_answer()
            raise

    def _paid(self, answer: bytes) -> bytes:
        """The answer to one of the replica's own questions, whose cost is noted."""
        self.own = self.own.with_answer(answer)
        return answer

    async def unload(self, adapter: str) -> bool:
        """Unload an adapter that is no longer on the shelf; False when the engine did not answer.

        vLLM evicts its weights when other adapters need the room.
        """
        timeout = aiohttp.ClientTimeout(_PROBE_TIMEOUT_S)
        body = {"lora_name": adapter}
        try:
            async with self._client.post(
                "/v1/unload_lora_adapter", json=body, headers=self._headers(), timeout=timeout
            ) as answer:
                return answer.status in (200, 404)  # 404: it was never loaded
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def load(self) -> EngineLoad | None:
        """The engine's own figures, or None while it does not answer."""
        look = await self.look()
        return look.load if look else None

    async def look(self) -> Look | None:
        """The engine's load and what each of its cores says of its work, or None while it does not answer."""
        timeout = aiohttp.ClientTimeout(_PROBE_TIMEOUT_S)
        try:
            async with self._client.get(_LOOK, headers=self._headers(), timeout=timeout) as answer:
                return parse_look(await answer.text()) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None

    def vitals(self) -> Vitals:
        """Its processes as the kernel sees them; once all of them have joined."""
        return Vitals(self._supervisor_id)

    async def stop(self) -> None:
        """End the tree; returns when no process of it is left."""
        if self._supervisor.stdin is not None:
            self._supervisor.stdin.close()
        await self.death()
        await self._client.close()

    async def _wait_for_end(self) -> str:
        reason = "its supervisor was killed"
        async for line in self._events:
            event, _, what = line.decode().strip().partition(" ")
            if event == "joined":
                self._members[what] += 1
            elif event == "supervised":
                # Not the process that was started: the supervisor goes on as a child of that one's (ENG-50).
                self._supervisor_id = int(what.rpartition(" ")[2])
            else:
                reason = what
        await self._supervisor.wait()
        return reason

    def _missing(self) -> Counter[str]:
        return expected_members(self._spec, self._member) - self._members

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._secret.sent}"}


@asynccontextmanager
async def running(spec: EngineSpec, member: Member = ONLY_MEMBER, replica_id: str = "") -> AsyncIterator[Engine]:
    """Start an engine, or a node's share of it; no process of its tree survives the `with`, however it ends.

    `replica_id` labels its metrics. Raises Refusal where vLLM's GPU build has no driver to run on.
    """
    if command.is_gpu_build() and not spec.settings.program:
        driver.require()
    await asyncio.to_thread(leftovers.sweep)
    with port_among(spec.settings.host or "", spec.settings.port_range) as port:
        async with _running_on(port, spec, member, replica_id) as engine:
            yield engine


@asynccontextmanager
async def _running_on(port: int, spec: EngineSpec, member: Member, replica_id: str) -> AsyncIterator[Engine]:
    tree = processes.new_tree()
    log = _new_log(spec, port)
    scratch = Path(tempfile.gettempdir()) / f"{leftovers.SCRATCH_PREFIX}{tree}"
    scratch.mkdir(mode=0o700)
    shelf = _shelf(spec, scratch)
    supervisor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serving.engine.supervisor", "--log", str(log), "--"),
        *command.arguments(spec, port, member),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=command.environment(spec, tree, scratch, os.environ, replica_id),
        start_new_session=True,
    )
    engine = Engine(spec, member, port, log, supervisor, shelf)
    try:
        yield engine
    finally:
        await engine.stop()
        await asyncio.to_thread(processes.kill_all, lambda: processes.of_tree(tree))
        shutil.rmtree(scratch, ignore_errors=True)


def _shelf(spec: EngineSpec, scratch: Path) -> Shelf | None:
    if spec.lora is None:
        return None
    folder = command.shelf_folder(scratch)
    folder.mkdir()
    return Shelf(folder, spec.checkpoint, spec.lora)


def _new_log(spec: EngineSpec, port: int) -> Path:
    """The log of this start; only the newest few of a model are kept."""
    folder = Path(spec.log_folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob(f"engine-{spec.model}-*.log"))[: -_KEPT_LOGS + 1]:
        old.unlink(missing_ok=True)
    return folder / f"engine-{spec.model}-{time.strftime('%Y%m%dT%H%M%S')}-{port}.log"


def _connector(tls: PlaneTls | None) -> aiohttp.TCPConnector:
    return aiohttp.TCPConnector(ssl=client_context(tls.ca_file)) if tls else aiohttp.TCPConnector()


def free_port(host: str) -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def port_among(host: str, range_: tuple[int, int] | None) -> Iterator[int]:
    """A TCP port for an engine's HTTP server, its own until the end; of a range the first that is free.

    So a pod's engines are on the first ports of the range, where Prometheus scrapes them. Raises EngineDied when all
    are taken. A lock holds the port until vLLM has bound it; the kernel releases the lock when its holder dies.
    """
    if range_ is None:
        yield free_port(host)
        return
    for port in range(range_[0], range_[1] + 1):
        with (Path(tempfile.gettempdir()) / f"{leftovers.SCRATCH_PREFIX}port-{port}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if _is_free(host, port):
                yield port
                return
    raise EngineDied("every port of engine.port_range is taken on this node")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vLLM does: closed connections do not count
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        return True
