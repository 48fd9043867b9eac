"""A gateway that is administered: a key for each role, and what they ask for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from serving.gateway.nouns import Role
from tests.gateway.world import Answer, World, running_gateway

PREFIX = "/admin/v1"


class Administered:
    """Tenants `acme` and `other`, and `platform`, which has the administrators of all."""

    def __init__(self, world: World, home: Path) -> None:
        self.world = world
        self.home = home
        self.registry = world.registry
        self.store = world.store
        for tenant in ("other", "platform"):
            self.registry.create_tenant(tenant)
        owners = {Role.MEMBER: "acme", Role.TENANT_ADMIN: "acme", Role.PLATFORM_ADMIN: "platform"}
        self.keys = {role: self.registry.create_key(owner, role=role) for role, owner in owners.items()}

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        role: Role = Role.PLATFORM_ADMIN,
        **headers: str,
    ) -> Answer:
        """One request below `/admin/v1`; `if_match="*"` is the header `if-match`."""
        sent = {"Authorization": f"Bearer {self.keys[role]}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.world.ask(method, PREFIX + path, body, sent)


@asynccontextmanager
async def administered(home: Path) -> AsyncIterator[Administered]:
    """A gateway without engines."""
    async with running_gateway(home, is_awaited=False) as world:
        yield Administered(world, home)


class Running:
    """A gateway in a thread of its own, for a client that blocks."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._is_up, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self.url, self.key = "", ""

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        async with administered(self._home) as office:
            self.url, self.key = office.world.url, office.keys[Role.PLATFORM_ADMIN]
            self._is_up.set()
            await self._stop.wait()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._is_up.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()
