"""Usage, calls and audit over HTTP: whose, in pages, as JSON and as CSV."""

from __future__ import annotations

import asyncio
import base64
import time

import pytest

from serving.gateway.identity.keys import id_of
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import Caller, Role, Usage
from tests.gateway.api.admin.office_hours import Administered
from tests.gateway.calls import settle


def use(office: Administered, *calls: tuple[str, str]) -> None:
    """Calls that ended well, each a tenant and a request id; five prompt tokens and two more."""
    with Ledger(office.store, clock=time.time) as ledger:
        for tenant, request_id in calls:
            caller = Caller(office.registry.tenant(tenant).id, tenant, "k1")
            settle(ledger, request_id, Usage(5, 2), caller)


def data(answer: object) -> list[dict[str, object]]:
    found = answer.json["data"]  # type: ignore[attr-defined] # a page has them
    assert isinstance(found, list)
    return found


async def test_usage_is_summed_up_and_only_ones_own(office: Administered) -> None:
    """A platform's administrator sees all tenants, or the one that is named; a tenant's its own, named or not."""
    use(office, ("acme", "r1"), ("acme", "r2"), ("other", "r3"))
    for role, path, tenants in (
        (Role.PLATFORM_ADMIN, "/usage", ["acme", "other"]),
        (Role.PLATFORM_ADMIN, "/usage?tenant=other", ["other"]),
        (Role.TENANT_ADMIN, "/usage", ["acme"]),
        (Role.TENANT_ADMIN, "/usage?tenant=acme", ["acme"]),
    ):
        assert [it["group"] for it in data(await office.ask("GET", path, role=role))] == tenants
        assert {it["tenant"] for it in data(await office.ask("GET", path.replace("usage", "calls"), role=role))} == set(
            tenants
        )
    (acme,) = data(await office.ask("GET", "/usage?by=model&tenant=acme"))
    assert acme["exact"] == {
        "requests": 2,
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "cached_prompt_tokens": 0,
        "reasoning_tokens": 0,
        "price_micros": 0,
    }


@pytest.mark.parametrize("place", ['[1e308,"r"]', '[-1e308,"r"]', '[1,"\\u0000"]', '[1,"r",2]', "[" * 700], ids=str)
async def test_a_place_that_no_page_named_is_refused(office: Administered, place: str) -> None:
    """However well it looks: it is the client's mistake, and no outage of the database."""
    answer = await office.ask("GET", f"/calls?after={base64.urlsafe_b64encode(place.encode()).decode()}")
    assert (answer.status, answer.error["param"]) == (400, "after")


async def test_a_kind_of_event_that_there_is_not_is_refused(office: Administered) -> None:
    """An empty answer would say that nothing of the kind was done."""
    assert (await office.ask("GET", "/audit?kind=keys.create")).status == 400
    for kind in ("key.create", "call", "sign_in.refused", "checkpoint"):
        assert (await office.ask("GET", f"/audit?kind={kind}")).status == 200


@pytest.mark.parametrize("by", ["tenant", "key", "user", "model", "adapter", "day", "priority", "route"])
async def test_usage_is_grouped(office: Administered, by: str) -> None:
    """Each way there is, within its moments."""
    use(office, ("acme", "r1"))
    assert len(data(await office.ask("GET", f"/usage?by={by}&since=2020-01-01"))) == 1
    assert data(await office.ask("GET", f"/usage?by={by}&until=2020-01-01T00:00:00Z")) == []


async def test_usage_and_calls_are_spreadsheets_too(office: Administered) -> None:
    """CSV with the names and columns of the command line."""
    use(office, ("acme", "r1"))
    for path, column in (("/usage?format=csv", "tenant"), ("/calls?format=csv", "request_id")):
        answer = await office.ask("GET", path)
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        header, row = answer.body.decode().splitlines()
        assert header.split(",")[0] == column and "acme" in row


async def test_reports_come_in_pages(office: Administered) -> None:
    """Every group and every call once, also those that began in the same moment."""
    use(office, *(("acme", f"r{number}") for number in range(5)), ("other", "r5"))
    seen = [it["group"] for it in data(await office.ask("GET", "/usage?limit=1"))]
    assert seen == ["acme"]
    assert [it["group"] for it in data(await office.ask("GET", "/usage?limit=1&after=acme"))] == ["other"]
    calls: list[object] = []
    path = "/calls?limit=2"
    while path:
        page = await office.ask("GET", path)
        calls += [it["request_id"] for it in data(page)]
        path = f"/calls?limit=2&after={page.json['next']}" if page.json["next"] else ""
    assert calls == ["r5", "r4", "r3", "r2", "r1", "r0"]
    assert (await office.ask("GET", "/calls?after=nothing")).error["param"] == "after"


async def test_a_page_of_a_spreadsheet_says_where_the_next_begins(office: Administered) -> None:
    """In a header, ready to be sent back; the last page has none: what is cut off is never unseen."""
    use(office, *(("acme", f"r{number}") for number in range(3)), ("other", "r3"))
    for path, rows in (("/usage?format=csv&limit=1", 2), ("/calls?format=csv&limit=2", 4)):
        seen: list[str] = []
        following: str | None = ""
        while following is not None:
            answer = await office.ask("GET", path + (f"&after={following}" if following else ""))
            seen += answer.body.decode().splitlines()[1:]
            following = answer.headers.get("x-next")
        assert len(set(seen)) == len(seen) == rows


async def test_the_audit_has_who_did_what_over_http(office: Administered) -> None:
    """Acts with their caller, reads of reports too; a tenant's administrator sees its tenant's, and no operator's machine."""
    made = await office.ask("POST", "/tenants/acme/keys", {}, Role.TENANT_ADMIN)
    office.registry.create_key("other")
    await office.ask("GET", "/usage")

    async def events(role: Role, query: str = "") -> list[dict[str, object]]:
        return data(await office.ask("GET", f"/audit{query}", role=role))

    deadline = time.monotonic() + 10
    while "usage.read" not in {it["kind"] for it in await events(Role.PLATFORM_ADMIN)}:
        assert time.monotonic() < deadline, "a read of usage is not in the audit"
        await asyncio.sleep(0.05)
    (act,) = await events(Role.TENANT_ADMIN, "?kind=key.create")
    assert (act["subject"], act["by"]) == (
        made.json["id"],
        {
            "tenant_id": office.registry.tenant("acme").id,
            "key_id": id_of(office.keys[Role.TENANT_ADMIN]),
            "role": "tenant_admin",
        },
    )
    assert {it["tenant_id"] for it in await events(Role.TENANT_ADMIN)} == {office.registry.tenant("acme").id}


@pytest.mark.parametrize("said", ["yesterday", "1700000000", "0.0", "2026-13-01", "20261101"])
async def test_a_moment_is_a_date_or_a_time(office: Administered, said: str) -> None:
    """In ISO 8601: a number may be seconds, milliseconds or a year."""
    answer = await office.ask("GET", f"/usage?since={said}")
    assert (answer.status, answer.error["param"]) == (400, "since")
