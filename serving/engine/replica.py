"""Replica: the Serve actor that owns one engine. Serve places, watches and replaces it; no token passes through it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from contextlib import AsyncExitStack

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serving.engine.command import EngineSpec
from serving.engine.engine import Engine, EngineDied, running
from serving.wire import EngineLoad, ReplicaReport, ReplicaState

logger = logging.getLogger("serving.replica")

#: Seconds one report may take to reach the directory; the next one says the same and more.
_REPORT_TIMEOUT_S = 2.0
#: Seconds between two looks at how many streams still run while draining. The first look comes after one, because
#: gateways that have not heard yet may still send: longer than a heartbeat and a gateway's poll together.
_DRAIN_LOOK_INTERVAL_S = 1.0


class Replica:
    """Owns one engine from its first process to its last."""

    async def __init__(self, spec: EngineSpec, directory_app: str) -> None:  # type: ignore[misc]  # Serve awaits it
        self._spec = spec
        self._id = f"{spec.model}-{uuid.uuid4().hex[:8]}"
        self._directory_app = directory_app
        self._state = ReplicaState.STARTING
        self._load = EngineLoad()
        self._reason: str | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._directory: DeploymentHandle | None = None
        self._owned = AsyncExitStack()
        self._engine: Engine = await self._owned.enter_async_context(running(spec))
        self._tasks.append(asyncio.create_task(self._report_for_ever()))
        try:
            await asyncio.wait_for(self._start(), spec.settings.start_timeout_s)
        except (EngineDied, TimeoutError) as error:
            await self._fail(str(error) or f"no token within {spec.settings.start_timeout_s:.0f} s of starting")
            raise
        self._tasks.append(asyncio.create_task(self._guard()))

    async def _start(self) -> None:
        started = time.monotonic()
        self._state = ReplicaState.LOADING
        await self._engine.until_listening()
        self._state = ReplicaState.WARMING
        await self._engine.first_token()
        self._engine.require_members()
        self._state = ReplicaState.READY
        await self._report()
        logger.info("%s is ready after %.1f s", self._id, time.monotonic() - started)

    async def check_health(self) -> None:
        """Asked by Serve; raises when the engine is gone or nobody hears of it, and Serve replaces this replica."""
        if self._state is ReplicaState.FAILED:
            raise EngineDied(self._reason or "the engine is gone")
        if any(task.done() for task in self._tasks):
            raise EngineDied("it no longer reports, so no gateway would know it")

    async def report(self) -> ReplicaReport:
        """What this replica says of itself now."""
        return ReplicaReport(
            replica_id=self._id,
            model=self._spec.model,
            url=self._engine.url,
            state=self._state,
            task=self._spec.task,
            context_tokens=self._spec.context_tokens,
            load=self._load,
            reason=self._reason,
        )

    async def __del__(self) -> None:
        """Awaited by Serve when it stops this replica: let streams finish, then end the engine."""
        if self._state is ReplicaState.READY:
            self._state = ReplicaState.DRAINING
            await self._report()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained(), self._spec.settings.drain_timeout_s)
        for task in self._tasks:
            task.cancel()
        await self._owned.aclose()

    async def _drained(self) -> None:
        await asyncio.sleep(_DRAIN_LOOK_INTERVAL_S)
        while not self._engine.is_dead:
            load = await self._engine.load()
            # An engine too busy to say how busy it is has not finished.
            if load is not None and load.running_requests + load.waiting_requests == 0:
                return
            await asyncio.sleep(_DRAIN_LOOK_INTERVAL_S)

    async def _guard(self) -> None:
        await self._fail(await self._engine.death())

    async def _fail(self, reason: str) -> None:
        logger.error("%s failed: %s", self._id, reason)
        self._state, self._reason = ReplicaState.FAILED, reason
        await self._report()
        await self._owned.aclose()

    async def _report_for_ever(self) -> None:
        while True:
            if self._state in (ReplicaState.READY, ReplicaState.DRAINING):
                self._load = await self._engine.load() or self._load
            await self._report()
            await asyncio.sleep(self._spec.settings.heartbeat_s)

    async def _report(self) -> None:
        try:
            if self._directory is None:
                # Looked up once: it asks Serve's controller, without which the directory must go on hearing us.
                self._directory = serve.get_app_handle(self._directory_app)
            await asyncio.wait_for(self._directory.report.remote(await self.report()), _REPORT_TIMEOUT_S)
        except (RayError, RayServeException, TimeoutError) as error:
            logger.warning("the directory did not hear %s: %s", self._id, type(error).__name__)
