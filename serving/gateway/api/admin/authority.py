"""Authority: who may administer what (TEN-34). Pure: a caller, and what it wants to see or change.

What belongs to another tenant is not there: a refusal would say that it is.
"""

from __future__ import annotations

from collections.abc import Collection

from serving.errors import Forbidden, ResourceNotFound
from serving.gateway.identity.records import Key
from serving.gateway.nouns import Caller, Right, Role


def require_tenant_admin(caller: Caller) -> None:
    """Refuses a caller that administers nothing."""
    if caller.role is Role.MEMBER:
        raise Forbidden("This key calls models; an administrator's key is needed here.")


def require_platform_admin(caller: Caller) -> None:
    """Refuses a caller that does not administer the platform."""
    require_tenant_admin(caller)
    if caller.role is not Role.PLATFORM_ADMIN:
        raise Forbidden("A platform administrator's key is needed here.")


def require_own(caller: Caller, tenant_id: str) -> None:
    """A tenant's administrator knows of its own tenant alone; raises ResourceNotFound."""
    if caller.role is not Role.PLATFORM_ADMIN and caller.tenant_id != tenant_id:
        raise ResourceNotFound


def require_below(caller: Caller, key: Key) -> None:
    """A tenant's administrator changes no platform administrator's key, though it be its tenant's."""
    if key.role is Role.PLATFORM_ADMIN:
        require_platform_admin(caller)


def require_grantable(caller: Caller, role: Role | None, rights: Collection[Right] | None) -> None:
    """A tenant's administrator grants neither rights nor the platform's role: not to a key, and not to itself by rotating one that has them."""
    if role is Role.PLATFORM_ADMIN or rights:
        require_platform_admin(caller)
