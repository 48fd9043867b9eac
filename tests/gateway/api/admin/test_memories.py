"""Memories: what is stored, over HTTP, for those who administer it."""

from __future__ import annotations

import msgspec

from serving.gateway.nouns import Role
from tests.gateway.api.admin.office_hours import Administered
from tests.gateway.stored.shelves import ADA, BOB, Shelves


async def test_what_is_stored_is_shown_and_deleted(office: Administered) -> None:
    """A tenant's administrator sees and deletes its own tenant's, a platform's any; a member and another tenant nothing."""
    kept = Shelves(office.store, office.home)
    kept.clock.now = 4_000_000_000.0
    ids = {it.name: it.id for it in office.registry.tenants()}
    mine = msgspec.structs.replace(ADA, tenant_id=ids["acme"])
    kept.put("resp_1", "one", caller=mine)
    kept.put("resp_2", "two", caller=msgspec.structs.replace(BOB, tenant_id=ids["acme"]))
    kept.put("resp_3", "three", caller=msgspec.structs.replace(ADA, tenant_id=ids["other"]))
    own = Role.TENANT_ADMIN

    first = (await office.ask("GET", "/stored?limit=1", role=own)).json
    rest = (await office.ask("GET", f"/stored?after={first['next']}", role=own)).json
    assert [it["id"] for it in [*first["data"], *rest["data"]]] == ["resp_1", "resp_2"]  # type: ignore[misc] # lists
    assert (await office.ask("GET", "/stored?tenant=other", role=own)).status == 404
    assert (await office.ask("GET", "/stored", role=Role.MEMBER)).status == 403
    everything = (await office.ask("GET", "/stored")).json["data"]
    assert isinstance(everything, list) and everything[0]["items"][0]["content"][0]["text"] == "one"

    assert (await office.ask("DELETE", "/tenants/other/stored", role=own)).status == 404
    assert (await office.ask("DELETE", "/tenants/acme/stored?user=bob", role=own)).json == {"count": 1}
    assert (await office.ask("DELETE", "/tenants/acme/stored")).json == {"count": 1}
    assert kept.count("responses") == 1
