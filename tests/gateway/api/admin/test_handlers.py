"""Tenants, keys and policies over HTTP."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from serving.gateway.identity.keys import id_of
from serving.gateway.nouns import Role
from tests.gateway.api.admin.office_hours import Administered
from tests.gateway.whole import WHOLE


async def test_a_key_says_who_it_is(office: Administered) -> None:
    """Its tenant, role and policies: what an application looks at when a call was refused."""
    told = (await office.ask("GET", "/whoami", role=Role.MEMBER)).json
    assert (told["tenant"], told["role"], told["rights"]) == ("acme", "member", [])
    assert told["key_id"] == id_of(office.keys[Role.MEMBER])


async def test_a_tenant_is_made_changed_and_shown(office: Administered) -> None:
    """Each answer has the revision as ETag, which the next change names."""
    made = await office.ask("POST", "/tenants", {"name": "new", "policy": {"tokens_per_day": 5}})
    assert (made.status, made.headers["etag"], made.json["policy"]) == (201, '"1"', {"tokens_per_day": 5})
    renamed = await office.ask(
        "PATCH", "/tenants/new", {"name": "newer", "disabled": True}, if_match=made.headers["etag"]
    )
    assert (renamed.json["name"], renamed.json["disabled_at"] is None) == ("newer", False)
    assert renamed.json["policy"] == {"tokens_per_day": 5}
    shown = await office.ask("GET", "/tenants/newer")
    assert (shown.headers["etag"], shown.json) == ('"2"', renamed.json)
    assert (await office.ask("POST", "/tenants", {"name": "newer"})).error["code"] == "conflict"


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_a_change_is_for_the_state_that_was_read(office: Administered, method: str) -> None:
    """428 where it does not say which, 412 where that is no more, and `*` for whichever it is."""
    body: object = {"policy": {}} if method == "PATCH" else {}
    path = "/tenants/acme" if method == "PATCH" else "/tenants/acme/policy"
    unsaid = await office.ask(method, path, body)
    assert (unsaid.status, unsaid.error["code"]) == (428, "revision_required")
    assert (await office.ask(method, path, body, if_match="1")).status == 400
    assert (await office.ask(method, path, body, if_match='"1"')).status == 200
    stale = await office.ask(method, path, body, if_match='"1"')
    assert (stale.status, stale.error["code"]) == (412, "stale_revision")
    assert (await office.ask(method, path, body, if_match="*")).headers["etag"] == '"3"'


@pytest.mark.parametrize("held", ["tenant", "key"])
async def test_every_field_of_a_policy_is_put_and_got(office: Administered, held: str) -> None:
    """The whole policy in place of the one before."""
    path = "/tenants/other" if held == "tenant" else f"/keys/{id_of(office.registry.create_key('other'))}"
    nothing: dict[str, object] = {}
    for policy in (msgspec.json.decode(msgspec.json.encode(WHOLE)), nothing):
        assert (await office.ask("PUT", f"{path}/policy", policy, if_match="*")).json == policy
        assert (await office.ask("GET", f"{path}/policy")).json == policy
        assert (await office.ask("GET", path)).json["policy"] == policy


async def test_a_key_lives_as_by_the_command_line(office: Administered) -> None:
    """Made, used, changed, rotated, revoked; its secret is seen when it is made and never again."""
    made = await office.ask("POST", "/tenants/other/keys", {"name": "ci", "role": "tenant_admin", "lifetime_s": 3600})
    key, key_id = str(made.json["key"]), str(made.json["id"])
    assert id_of(key) == key_id
    office.keys[Role.MEMBER] = key
    assert (await office.ask("GET", "/whoami", role=Role.MEMBER)).json["tenant"] == "other"
    changed = await office.ask("PATCH", f"/keys/{key_id}", {"name": "cd", "rights": ["ignore_eos"]}, if_match='"1"')
    assert (changed.json["name"], changed.json["rights"], changed.json["role"]) == (
        "cd",
        ["ignore_eos"],
        "tenant_admin",
    )
    rotated = await office.ask("POST", f"/keys/{key_id}/rotate", {"grace_s": 60})
    assert (rotated.json["name"], rotated.json["rights"]) == ("cd", ["ignore_eos"])
    revoked = await office.ask("DELETE", f"/keys/{key_id}", if_match="*")
    assert revoked.json["state"] == "revoked"
    assert (await office.ask("PATCH", f"/keys/{key_id}", {"name": "x"}, if_match="*")).error["code"] == "conflict"
    for path in ("/keys", "/tenants/other/keys", f"/keys/{key_id}"):
        answer = await office.ask("GET", path)
        assert answer.status == 200 and key.encode() not in answer.body


async def test_pages_follow_one_another(office: Administered) -> None:
    """Every thing once, however short the pages, and an end."""
    for number in range(5):
        office.registry.create_tenant(f"t{number}")
        office.registry.create_key("acme")
    for path, name, there in (
        ("/tenants", "name", {tenant.name for tenant in office.registry.tenants()}),
        ("/keys", "id", {key.id for key in office.registry.keys(None)}),
        ("/tenants/acme/keys", "id", {key.id for key in office.registry.keys("acme")}),
    ):
        seen: list[str] = []
        after = ""
        while after is not None:
            page = (await office.ask("GET", f"{path}?limit=2" + (f"&after={after}" if after else ""))).json
            seen += [it[name] for it in page["data"]]  # type: ignore[attr-defined] # a page has them
            after = page["next"]  # type: ignore[assignment]
        assert seen == sorted(there)


@pytest.mark.parametrize(
    ("path", "body", "other"),
    [
        ("/tenants", {"name": "new"}, {"name": "newer"}),
        ("/tenants/acme/keys", {"name": "ci"}, {"name": "cd"}),
        ("/keys/{}/rotate", {"grace_s": 5}, {"grace_s": 6}),
    ],
)
async def test_a_creation_that_is_repeated_happens_once(
    office: Administered, path: str, body: object, other: object
) -> None:
    """The same answer, a new key in it included, also for several at once; another request under that name is refused."""
    path = path.format(id_of(office.registry.create_key("acme")))
    answers = await asyncio.gather(*(office.ask("POST", path, body, idempotency_key="once") for _ in range(4)))
    there = (len(office.registry.tenants()), len(office.registry.keys()))
    again = await office.ask("POST", path, body, idempotency_key="once")
    assert {(it.status, it.body, it.headers["etag"]) for it in [*answers, again]} == {(201, again.body, '"1"')}
    refused = await office.ask("POST", path, other, idempotency_key="once")
    assert (refused.status, refused.error["code"]) == (409, "idempotency_key_reused")
    assert there == (len(office.registry.tenants()), len(office.registry.keys()))
    assert (await office.ask("POST", path, other, idempotency_key="other")).status == 201


async def test_a_repetition_is_its_callers(office: Administered) -> None:
    """Another key that sends the same name asks for something of its own: it gets no answer that was another's."""
    made = [
        (await office.ask("POST", "/tenants/acme/keys", {}, role, idempotency_key="same")).json["key"]
        for role in (Role.PLATFORM_ADMIN, Role.TENANT_ADMIN)
    ]
    assert made[0] != made[1]


async def test_what_failed_can_be_asked_for_again(office: Administered) -> None:
    """A refusal is not kept: the same name serves when its reason is gone."""
    assert (await office.ask("POST", "/tenants/new/keys", {}, idempotency_key="k")).status == 404
    office.registry.create_tenant("new")
    assert (await office.ask("POST", "/tenants/new/keys", {}, idempotency_key="k")).status == 201
