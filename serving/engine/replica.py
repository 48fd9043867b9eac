"""Replica: the Serve actor that owns one engine. Serve places, health-checks and replaces it; no token passes through it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import aiohttp
import msgspec
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from serving.config import AdapterSettings
from serving.engine.adapters import Shelf
from serving.engine.checkpoints import manifest
from serving.engine.command import ONLY_MEMBER, EngineSpec, Member
from serving.engine.directory import Meeting
from serving.engine.engine import (
    Engine,
    EngineDied,
    Refused,
    Senseless,
    Unanswered,
    free_port,
    running,
)
from serving.engine.figures import CoreFigures, Look
from serving.engine.heartbeat import Heartbeat
from serving.engine.progress import Evidence, Limits, Watch
from serving.engine.specs import LiveSettings
from serving.errors import Refusal
from serving.wire import SENSELESS, WEDGED, EngineLoad, ReplicaReport, ReplicaState

logger = logging.getLogger("serving.replica")

#: Seconds that one report may take to reach the directory; the next report repeats its content.
_REPORT_TIMEOUT_S = 2.0
#: Seconds between two polls of the directory while a start waits.
_BACK_OFF_POLL_S = 1.0
#: Seconds between two judgements on a running engine's progress.
_WATCH_INTERVAL_S = 1.0
#: Seconds of idleness after which an engine is asked again whether it makes sense, and between two such questions.
_SENSE_INTERVAL_S = 60.0
#: Seconds for an answer to one; the first may choose kernels on its way.
_SENSE_TIMEOUT_S = 30.0
_FIRST_SENSE_TIMEOUT_S = 120.0
#: Seconds after which an engine that is asked for its figures counts as silent.
_LOOK_LIMIT_S = 3.0
#: Seconds between two checks for running streams while draining. The first check comes after one interval, because
#: gateways that do not know yet may still send: it is longer than a heartbeat and a gateway's poll together.
_DRAIN_POLL_INTERVAL_S = 1.0


class Replica:
    """Owns one engine, or one node's share of it, from its first process to its last."""

    async def __init__(self, spec: EngineSpec, directory_app: str) -> None:  # type: ignore[misc]  # Serve awaits it
        self._spec = _at_its_node(spec)
        self._adapters: tuple[AdapterSettings, ...] = ()
        #: Adapters of the running engine that were not found to change nothing.
        self._proven: set[str] = set()
        self._id = f"{spec.model}-{uuid.uuid4().hex[:8]}"
        self._directory_app = directory_app
        self._directory: DeploymentHandle | None = None
        self._node = ray.get_runtime_context().get_node_id()
        self._devices = tuple(str(index) for index in ray.get_gpu_ids())
        self._gang = serve.get_replica_context().gang_context
        self._member = ONLY_MEMBER
        self._state = ReplicaState.STARTING
        self._load = EngineLoad()
        #: The last look at the engine; None if it did not answer. And since when the next one has been waited for.
        self._look: Look | None = None
        self._asked_at: float | None = None
        self._heartbeat = Heartbeat(time.monotonic)
        self._reason: str | None = None
        #: Why this replica ended its engine itself, for the directory's count.
        self._ejected: str | None = None
        self._engine: Engine | None = None
        self._owned = AsyncExitStack()
        self._tasks = [asyncio.create_task(self._report_for_ever())]
        try:
            await self._back_off()
            await self._take_live_settings()
            engine = await self._start()
        except (EngineDied, Refusal, TimeoutError) as error:
            await self._fail(str(error) or "no token within the start's time limit")
            raise
        self._tasks.append(asyncio.create_task(self._guard(engine)))

    async def _back_off(self) -> None:
        """Exponential back-off: wait as long as the directory says after recent failures of this model's engines."""
        while wait_s := await self._ask_directory(lambda it: it.start_wait_s.remote(self._spec.model)) or 0.0:
            self._reason = f"waits {wait_s:.0f} s because engines of this model keep failing"
            await asyncio.sleep(min(wait_s, _BACK_OFF_POLL_S))
        self._reason = None

    async def _take_live_settings(self) -> None:
        """Fetch them from the directory, because Serve calls `reconfigure` only after the start."""
        if plain := await self._ask_directory(lambda it: it.live_settings.remote(self._spec.model)):
            self._adopt(LiveSettings.model_validate(plain))

    async def _start(self) -> Engine:
        began = time.monotonic()
        for folder in await asyncio.to_thread(verify_checkpoints, self._spec):
            logger.warning("%s: %s has neither manifest nor checksums, so it was not verified", self._id, folder)
        self._member = await self._meet()
        async with asyncio.timeout(await asyncio.to_thread(start_limit_s, self._spec)):
            self._engine = engine = await self._owned.enter_async_context(running(self._spec, self._member, self._id))
            await self._stock(engine)
            self._enter(ReplicaState.LOADING, began)
            if self._member.rank:
                await engine.until_joined()
            else:
                await engine.until_listening()
                self._enter(ReplicaState.WARMING, began)
                await engine.first_token()
                await engine.require_members()
                await self._examine(engine)
                await self._prove_adapters(engine)
        self._enter(ReplicaState.READY, began)
        await self._report()
        return engine

    async def _examine(self, engine: Engine) -> None:
        """Raise EngineDied unless the engine makes sense of known texts; one that cannot be asked is logged."""
        try:
            for core in self._cores:
                if not await engine.require_sense(core, _FIRST_SENSE_TIMEOUT_S, is_in_use=False):
                    logger.warning("%s: whether it makes sense was not examined", self._id)
        except Senseless as error:
            self._ejected = SENSELESS
            raise EngineDied(f"it talks nonsense: {error}") from None
        except Unanswered as error:
            raise EngineDied(str(error)) from None

    @property
    def _cores(self) -> range:
        """The engine's cores that this replica can ask: all on the first node, none on another."""
        return range(0 if self._member.rank else self._spec.parallel.data)

    async def reconfigure(self, plain: dict[str, Any]) -> None:
        """Called by Serve after the start, and when settings change that restart no engine: adapters, heartbeat,
        drain.

        Without it Serve would keep the old ones even for later starts: equal version, equal deployment (seen with
        2.60).
        """
        self._adopt(LiveSettings.model_validate(plain))
        if self._engine and not self._engine.is_dead:
            await self._stock(self._engine)

    def _adopt(self, live: LiveSettings) -> None:
        self._spec = msgspec.structs.replace(self._spec, settings=live.over(self._spec.settings))
        self._adapters = live.adapters

    async def _stock(self, engine: Engine) -> None:
        """Bring the engine's shelf in step with the settings; an adapter that cannot be loaded is logged and skipped."""
        shelf = engine.shelf
        if shelf is None:
            return
        # New ones first: proving them takes seconds, in which those that are withdrawn do no harm.
        await self._offer(engine, shelf, [it for it in self._adapters if it.name not in shelf.names])
        try:
            gone = await asyncio.to_thread(shelf.withdraw, self._adapters)
        except OSError as error:
            logger.error("%s: adapters could not be withdrawn: %s", self._id, error.strerror)
            return
        if gone:
            await self._report()  # gateways first, so that few calls are still routed to it
        for name in gone:
            if not await engine.unload(name):
                logger.warning("%s: the engine did not unload adapter %s", self._id, name)
        await self._offer(engine, shelf, [it for it in self._adapters if it.name in gone])
        await self._report()

    async def _offer(self, engine: Engine, shelf: Shelf, adapters: Iterable[AdapterSettings]) -> None:
        for adapter in adapters:
            try:
                await asyncio.to_thread(shelf.offer, adapter)
            except (Refusal, OSError) as error:
                logger.error("%s: %s", self._id, error)
        if self._state is ReplicaState.READY:
            await self._prove_adapters(engine)

    async def _prove_adapters(self, engine: Engine) -> None:
        """Have the engine load each new adapter once, and withdraw those that cannot be loaded or change nothing."""
        shelf = engine.shelf
        if shelf is None:
            return
        self._proven &= set(shelf.names)
        for name in set(shelf.names) - self._proven:
            try:
                why = await self._flaw_of(name, engine, shelf)
            except Unanswered as error:
                why = None
                logger.warning("%s: whether adapter %s changes anything was not seen: %s", self._id, name, error)
            if why:
                logger.error("%s: The adapter '%s' cannot be loaded: %s.", self._id, name, why)
                await asyncio.to_thread(shelf.hide, name)
            else:
                self._proven.add(name)
            await engine.unload(name)  # until a client asks for it

    async def _flaw_of(self, adapter: str, engine: Engine, shelf: Shelf) -> str | None:
        """Why an adapter is not offered, in one clause; raises Unanswered."""
        timeout = aiohttp.ClientTimeout(_SENSE_TIMEOUT_S)
        try:
            plain = await engine.next_logprobs(self._spec.model, 0, timeout)
            adapted = await engine.next_logprobs(adapter, 0, timeout)
        except (Refused, msgspec.DecodeError):
            return "the engine cannot load it"
        if plain is None or plain != adapted:
            return None
        if await asyncio.to_thread(shelf.is_zero, adapter):
            logger.warning("%s: adapter %s answers as its base, because its weights are zero", self._id, adapter)
            return None
        return "it changes nothing of what the model says"

    def _enter(self, state: ReplicaState, began: float) -> None:
        self._state = state
        logger.info("%s is %s after %.1f s", self._id, state, time.monotonic() - began)

    async def _meet(self) -> Member:
        """This replica's rank in its gang, and the address of the first member."""
        if self._gang is None:
            return ONLY_MEMBER
        mine = (
            (ray.util.get_node_ip_address(), free_port(self._spec.settings.host or ""))
            if self._gang.rank == 0
            else None
        )
        try:
            async with asyncio.timeout(self._spec.settings.start_timeout_s):
                return Member(self._gang.rank, *await self._meeting_place(self._gang.gang_id, mine))
        except TimeoutError:
            raise EngineDied("the first member of this engine did not publish its address in time") from None

    async def _meeting_place(self, gang: str, mine: Meeting | None) -> Meeting:
        while True:
            if place := await self._ask_directory(lambda it: it.meet.remote(gang, mine)):
                return cast(Meeting, place)
            await asyncio.sleep(_BACK_OFF_POLL_S)

    async def check_health(self) -> None:
        """Serve's health check: raises when the engine is gone or no longer reported; Serve then replaces this replica."""
        if self._state is ReplicaState.FAILED:
            raise EngineDied(self._reason or "the engine is gone")
        if any(task.done() for task in self._tasks):
            raise EngineDied("it no longer reports, so no gateway can find it")

    async def report(self) -> ReplicaReport:
        """This replica's heartbeat now."""
        return ReplicaReport(
            replica_id=self._id,
            model=self._spec.model,
            url=self._engine.url if self._engine else "",
            state=self._state,
            task=self._spec.task,
            context_tokens=self._spec.context_tokens,
            load=self._load,
            reason=self._reason,
            ejected=self._ejected,
            progress=self._engine.progress() if self._engine and self._state is ReplicaState.LOADING else None,
            node=self._node,
            devices=self._devices,
            rank=self._member.rank,
            adapters=self._offered(),
        )

    def _offered(self) -> tuple[str, ...]:
        """Before there is an engine, the configured adapters: during a cold start they must not be unknown models."""
        if self._engine is None:
            return tuple(sorted(adapter.name for adapter in self._adapters))
        if self._engine.shelf is None:
            return ()
        is_running = self._state in (ReplicaState.READY, ReplicaState.DRAINING)
        return tuple(name for name in self._engine.shelf.names if not is_running or name in self._proven)

    async def __del__(self) -> None:
        """Graceful shutdown, awaited by Serve: let running streams finish, then end the engine."""
        if self._state is ReplicaState.READY and self._engine:
            self._state = ReplicaState.DRAINING
            await self._report()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained(self._engine), self._spec.settings.drain_timeout_s)
        for task in self._tasks:
            task.cancel()
        await self._owned.aclose()

    async def _drained(self, engine: Engine) -> None:
        await asyncio.sleep(_DRAIN_POLL_INTERVAL_S)
        while not engine.is_dead:
            load = await engine.load()
            # An engine that is too busy to answer has not finished.
            if load is not None and load.running_requests + load.waiting_requests == 0:
                return
            await asyncio.sleep(_DRAIN_POLL_INTERVAL_S)

    async def _guard(self, engine: Engine) -> None:
        """Fail with the engine: when it has ended, no longer works, or talks nonsense."""
        limits = Limits.of(self._spec.step_tokens, on_gpus=bool(self._spec.gpus_per_node))
        watches = {core: Watch(limits) for core in self._cores or (0,)}
        death = asyncio.create_task(engine.death())
        wedge = asyncio.create_task(self._wedge(engine, watches))
        flaw = asyncio.create_task(self._flaw(engine, watches))
        try:
            await asyncio.wait((death, wedge, flaw), return_when=asyncio.FIRST_COMPLETED)
            if death.done():
                reason = death.result()
            elif wedge.done():
                self._ejected, reason = WEDGED, wedge.result()
            else:
                self._ejected, reason = flaw.result()
        finally:
            for task in (death, wedge, flaw):
                task.cancel()
        await self._fail(reason)

    async def _flaw(self, engine: Engine, watches: Mapping[int, Watch]) -> tuple[str, str]:
        """Wait until an idle engine does not answer, or talks nonsense; returns which, and why."""
        while True:
            await asyncio.sleep(_SENSE_INTERVAL_S)
            if self._cores and _idle_s(watches) >= _SENSE_INTERVAL_S:
                found = await self._nonsense(engine)
                # While calls of others come in, an answer may only be late.
                if found and (found[0] == SENSELESS or _idle_s(watches) >= _SENSE_TIMEOUT_S):
                    return found

    async def _nonsense(self, engine: Engine) -> tuple[str, str] | None:
        """What is wrong with an engine, twice in a row."""
        found: tuple[str, str] | None = None
        for _ in range(2):
            try:
                for core in self._cores:
                    if not await engine.require_sense(core, _SENSE_TIMEOUT_S, is_in_use=True):
                        await engine.gives_a_token(core)
                return None
            except Senseless as error:
                found = SENSELESS, f"it talks nonsense: {error}"
            except Unanswered as error:
                found = WEDGED, f"{error}, although it was idle"
            logger.warning("%s: %s", self._id, found[1])
        return found

    async def _wedge(self, engine: Engine, watches: Mapping[int, Watch]) -> str:
        """Wait until the engine no longer works although its processes live; returns why."""
        vitals = engine.vitals()
        asked: dict[int, asyncio.Task[None]] = {}
        while True:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            reading = vitals.read()
            for core, watch in watches.items():
                seen = self._figures(core)
                evidence = Evidence(
                    at=time.monotonic(),
                    figures=seen.moving if seen else None,
                    calls=seen.calls if seen else 0,
                    stopped=reading.stopped,
                    computing_s=reading.computing_s,
                )
                if reason := watch.judge(evidence):
                    return reason
                is_asked = core in asked and not asked[core].done()
                if watch.must_ask() and not is_asked and not self._member.rank:
                    asked[core] = asyncio.create_task(_ask(engine, core, watch))

    def _figures(self, core: int) -> CoreFigures | None:
        """What a core said last; None if that is too long ago. A node without a server has no figures, and no calls."""
        if self._member.rank:
            return CoreFigures((), 0)
        # An old look is no silence: the report that follows each may be what takes long.
        if self._asked_at is not None and time.monotonic() - self._asked_at > _LOOK_LIMIT_S:
            return None
        return self._look.cores.get(core) if self._look else None

    async def _fail(self, reason: str) -> None:
        logger.error("%s failed: %s", self._id, reason)
        self._state, self._reason = ReplicaState.FAILED, reason
        await self._report()
        await self._owned.aclose()

    async def _report_for_ever(self) -> None:
        while True:
            if self._engine and self._state in (ReplicaState.READY, ReplicaState.DRAINING):
                await self._take_look(self._engine)
            if self._heartbeat.is_due(await self.report()):
                await self._report()
            await asyncio.sleep(self._spec.settings.heartbeat_s)

    async def _take_look(self, engine: Engine) -> None:
        self._asked_at = time.monotonic()
        self._look = await engine.look()
        self._asked_at = None
        if self._look:
            own = min(self._look.load.running_requests, engine.own_requests)
            running = self._look.load.running_requests - own
            self._load = msgspec.structs.replace(
                self._look.load,
                running_requests=running,
                own_prompt_tokens=engine.own.prompt_tokens,
                own_generation_tokens=engine.own.generation_tokens,
                own_unanswered=engine.own.unanswered,
            )

    async def _report(self) -> None:
        report = await self.report()
        if await self._ask_directory(lambda it: it.report.remote(report)):
            self._heartbeat.arrive(report)

    async def _ask_directory(self, ask: Callable[[DeploymentHandle], DeploymentResponse]) -> Any:
        """The directory's answer (Serve's handles are untyped), or None without one: no engine blocks on the directory."""
        try:
            if self._directory is None:
                # Looked up once, because the look-up needs Serve's controller and reports must go on without it.
                self._directory = serve.get_app_handle(self._directory_app)
            return await asyncio.wait_for(ask(self._directory), _REPORT_TIMEOUT_S)
        except (RayError, RayServeException, TimeoutError) as error:
            logger.warning("%s could not reach the directory: %s", self._id, type(error).__name__)
            return None


def _idle_s(watches: Mapping[int, Watch]) -> float:
    """Seconds for which none of the cores had anything to do."""
    return min(watch.idle_s for watch in watches.values())


async def _ask(engine: Engine, core: int, watch: Watch) -> None:
    """Ask a core that stands still for one token."""
    if await engine.gives_a_token(core):
        watch.has_answered()


def _at_its_node(spec: EngineSpec) -> EngineSpec:
    """Settings without an address mean the node's own, as Ray knows it."""
    if spec.settings.host:
        return spec
    here = spec.settings.model_copy(update={"host": ray.util.get_node_ip_address()})
    return msgspec.structs.replace(spec, settings=here)


def verify_checkpoints(spec: EngineSpec) -> list[str]:
    """Compare what an engine loads, its model and the draft that guesses for it, with manifests and checksums; returns the
    folders that have neither. Raises Refusal that names the first file which differs."""
    wanted = {spec.checkpoint: dict(spec.checksums)} | ({spec.draft: {}} if spec.draft else {})
    stamps = Path(spec.cache_folder) / "verified"
    return [folder for folder, checksums in wanted.items() if not manifest.verify_once(Path(folder), stamps, checksums)]


def start_limit_s(spec: EngineSpec) -> float:
    """Seconds from the first process to the first token: `start_timeout_s`, and the time to read its weights."""
    size_mib = sum(path.stat().st_size for path in Path(spec.checkpoint).rglob("*") if path.is_file()) / 2**20
    return spec.settings.start_timeout_s + size_mib / spec.settings.load_mib_per_s
