"""A gateway that is administered: a key for each role, and what they ask for."""

from __future__ import annotations

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
