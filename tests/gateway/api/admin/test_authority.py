"""Who may administer what: every route, asked by every role, for its own tenant and for another's."""

from __future__ import annotations

import pytest

from serving.errors import Forbidden, ResourceNotFound
from serving.gateway.api.admin import application, authority
from serving.gateway.identity.keys import id_of
from serving.gateway.identity.records import Key
from serving.gateway.ledger import price_list
from serving.gateway.ledger.prices import Price
from serving.gateway.nouns import Caller, Right, Role
from serving.gateway.policies import Policy
from tests.gateway.api.admin.office_hours import Administered

EVERYONE, ADMINISTRATORS, TENANT, PLATFORM = (
    "everyone",
    "administrators",
    "those of the tenant",
    "those of the platform",
)
#: Routes in which a parameter names the tenant.
REPORTS = ("/usage", "/calls", "/audit", "/stored")

#: Route → who may, and a body that is in order.
ROUTES: dict[str, tuple[str, object]] = {
    "GET /admin/v1/openapi.json": (EVERYONE, None),
    "GET /admin/v1/whoami": (EVERYONE, None),
    "GET /admin/v1/me": (EVERYONE, None),
    "GET /admin/v1/fleet": (PLATFORM, None),
    "GET /admin/v1/activity": (PLATFORM, None),
    "GET /admin/v1/tenants": (PLATFORM, None),
    "POST /admin/v1/tenants": (PLATFORM, {"name": "new"}),
    "GET /admin/v1/tenants/{tenant}": (TENANT, None),
    "PATCH /admin/v1/tenants/{tenant}": (PLATFORM, {"disabled": False}),
    "GET /admin/v1/tenants/{tenant}/policy": (TENANT, None),
    "PUT /admin/v1/tenants/{tenant}/policy": (PLATFORM, {}),
    "GET /admin/v1/tenants/{tenant}/limits": (TENANT, None),
    "GET /admin/v1/tenants/{tenant}/keys": (TENANT, None),
    "POST /admin/v1/tenants/{tenant}/keys": (TENANT, {}),
    "GET /admin/v1/keys": (PLATFORM, None),
    "GET /admin/v1/keys/{key_id}": (TENANT, None),
    "PATCH /admin/v1/keys/{key_id}": (TENANT, {"name": "other"}),
    "DELETE /admin/v1/keys/{key_id}": (TENANT, None),
    "POST /admin/v1/keys/{key_id}/rotate": (TENANT, {}),
    "GET /admin/v1/keys/{key_id}/policy": (TENANT, None),
    "PUT /admin/v1/keys/{key_id}/policy": (TENANT, {}),
    "GET /admin/v1/prices": (ADMINISTRATORS, None),
    "GET /admin/v1/prices/{model}": (ADMINISTRATORS, None),
    "PUT /admin/v1/prices/{model}": (PLATFORM, {"prompt_micros": 1, "completion_micros": 1}),
    "DELETE /admin/v1/prices/{model}": (PLATFORM, None),
    "GET /admin/v1/usage": (TENANT, None),
    "GET /admin/v1/calls": (TENANT, None),
    "GET /admin/v1/audit": (TENANT, None),
    "GET /admin/v1/stored": (TENANT, None),
    "DELETE /admin/v1/tenants/{tenant}/stored": (TENANT, None),
}


def expected(may: str, role: Role, *, is_own: bool) -> set[int]:
    done = {200, 201, 204}
    if may == EVERYONE or role is Role.PLATFORM_ADMIN:
        return done
    if may == ADMINISTRATORS and role is Role.TENANT_ADMIN:
        return done
    if may == PLATFORM or role is Role.MEMBER:
        return {403}
    return done if is_own else {404}


def test_every_route_is_in_the_table() -> None:
    """A new route says here who may use it."""
    paths = application.make().app.openapi()["paths"]
    assert {f"{method.upper()} {path}" for path, of_path in paths.items() for method in of_path} == set(ROUTES)


@pytest.mark.parametrize("role", Role)
async def test_each_role_may_what_the_table_says(office: Administered, role: Role) -> None:
    """403 where its role is too low, and 404 for what is another tenant's: a refusal would say that it is there."""
    wrong = []
    for route, (may, body) in ROUTES.items():
        for is_own in (True, False):
            tenant = "acme" if is_own else "other"
            key_id = str(id_of(office.registry.create_key(tenant)))
            method, _, path = route.replace("{tenant}", tenant).replace("{key_id}", key_id).partition(" /admin/v1")
            path = path.replace("{model}", f"m{is_own}") + (f"?tenant={tenant}" if path in REPORTS else "")
            price_list.put(office.store, f"m{is_own}", Price(1, 1, 1))
            sent = {"name": f"new-{is_own}"} if path == "/tenants" and body else body
            answer = await office.ask(method, path, sent, role, if_match="*")
            if answer.status not in expected(may, role, is_own=is_own):
                wrong.append((route, is_own, answer.status, answer.body))
    assert wrong == []


async def test_what_is_anothers_looks_as_what_is_not_there(office: Administered) -> None:
    """The same answer, to the byte, for a tenant or a key that is another's and for one that nobody has."""
    theirs = str(id_of(office.registry.create_key("other")))
    for there, nowhere in (("/tenants/other", "/tenants/nobody"), (f"/keys/{theirs}", "/keys/abcdefghij")):
        for method, below, body in (("GET", "", None), ("PUT", "/policy", {}), ("GET", "/policy", None)):
            if "tenants" in there and method == "PUT":
                continue
            answers = [
                await office.ask(method, path + below, body, Role.TENANT_ADMIN, if_match="*")
                for path in (there, nowhere)
            ]
            assert {(it.status, it.body) for it in answers} == {(404, answers[0].body)}


async def test_no_key_gives_what_it_has_not(office: Administered) -> None:
    """A tenant's administrator makes no platform administrator and grants no rights, neither to a key nor to itself; nor does
    it get the secret of such a key by rotating it."""
    own = str(id_of(office.keys[Role.TENANT_ADMIN]))
    chief = str(id_of(office.registry.create_key("acme", role=Role.PLATFORM_ADMIN)))
    trusted = str(id_of(office.registry.create_key("acme", allowed=[Right.NAME_USERS])))
    tries: list[tuple[str, str, object]] = [
        ("POST", "/tenants/acme/keys", {"role": "platform_admin"}),
        ("POST", "/tenants/acme/keys", {"rights": ["ignore_eos"]}),
        ("PATCH", f"/keys/{own}", {"role": "platform_admin"}),
        ("PATCH", f"/keys/{own}", {"rights": ["name_users"]}),
        ("PATCH", f"/keys/{chief}", {"name": "mine"}),
        ("PUT", f"/keys/{chief}/policy", {"requests_per_minute": 0}),
        ("DELETE", f"/keys/{chief}", None),
        ("POST", f"/keys/{chief}/rotate", {}),
        ("POST", f"/keys/{trusted}/rotate", {}),
    ]
    before = office.registry.keys("acme")
    for method, path, body in tries:
        answer = await office.ask(method, path, body, Role.TENANT_ADMIN, if_match="*")
        assert (answer.status, answer.error["code"]) == (403, "insufficient_permissions"), (method, path)
    assert office.registry.keys("acme") == before
    assert (await office.ask("POST", f"/keys/{own}/rotate", {}, Role.TENANT_ADMIN)).status == 201


KEY = Key("k", "acme", "", 0.0, None, None, tenant_id="t1")


def caller(role: Role, tenant_id: str = "t1") -> Caller:
    return Caller(tenant_id, "acme", "k1", role=role, tenant_policy=Policy())


def test_a_tenant_is_known_by_its_id() -> None:
    """A name may have become another's: whoever administered the one who had it does not administer its heir."""
    authority.require_own(caller(Role.TENANT_ADMIN), "t1")
    authority.require_own(caller(Role.PLATFORM_ADMIN), "t2")
    with pytest.raises(ResourceNotFound):
        authority.require_own(caller(Role.TENANT_ADMIN), "t2")


def test_a_key_without_a_role_administers_nothing() -> None:
    """Each requirement refuses it."""
    for require in (authority.require_tenant_admin, authority.require_platform_admin):
        with pytest.raises(Forbidden):
            require(caller(Role.MEMBER))
    authority.require_below(caller(Role.TENANT_ADMIN), KEY)
