"""The front of `/admin/v1`: what it takes from a gateway, and what a client sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from serving.gateway.api.admin import front
from serving.gateway.nouns import Role
from tests.gateway.api.admin.office_hours import Administered
from tests.gateway.world import until

STARTED = """
import asyncio, sys
from pathlib import Path
from tests.gateway.world import running_gateway

async def main(home):
    async with running_gateway(home, is_awaited=False) as world:
        assert (await world.ask("GET", "/v1/models")).status == 200
        print("fastapi" in sys.modules)
        assert (await world.ask("GET", "/admin/v1/whoami")).status == 200
        print("fastapi" in sys.modules)

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_gateway_that_nobody_administers_does_not_load_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    """FastAPI and the shapes of all requests come with the first one."""
    home = tmp_path_factory.mktemp("home")
    run = subprocess.run([sys.executable, "-c", STARTED, str(home)], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["False", "True"], run.stderr


async def test_only_who_has_a_key_gets_anything(office: Administered) -> None:
    """Not even the document, nor whether a route exists."""
    for path in ("/admin/v1/openapi.json", "/admin/v1/whoami", "/admin/v1/nothing"):
        answer = await office.world.ask("GET", path, headers={"Authorization": "Bearer sk-nobody"})
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_url"),
        ("GET", "/", 404, "unknown_url"),
        ("PUT", "/tenants", 405, "method_not_allowed"),
        ("GET", "/tenants/a%20b", 404, "not_found"),
        ("GET", "/tenants/a%00", 404, "not_found"),
        ("GET", "/tenants?limit=0", 400, None),
        ("GET", "/tenants?limit=501", 400, None),
        ("GET", "/tenants?page=2", 400, "unknown_parameter"),
        ("GET", "/whoami?tenant=", 400, "unknown_parameter"),
    ],
)
async def test_refusals_look_as_all_of_this_gateways(
    office: Administered, method: str, path: str, status: int, code: str | None
) -> None:
    """OpenAI's shape, our codes; nothing of what is behind."""
    answer = await office.ask(method, path)
    assert (answer.status, answer.error["code"], answer.error["type"]) == (status, code, "invalid_request_error")
    assert answer.headers["x-request-id"]


async def test_a_path_says_all_methods_that_it_takes(office: Administered) -> None:
    """As RFC 9110 wants of a 405."""
    assert (await office.ask("PUT", "/tenants")).headers["allow"] == "GET, POST"
    assert (await office.ask("HEAD", "/whoami")).status == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"name": "\\ud800"}', None),
        (b'{"name": NaN}', None),
        (b"[" * 100_000, None),
        (b'{"name": "new", "policy": ' + b'{"a":' * 600 + b"1" + b"}" * 601, None),
        (b'{"name": "new", "policy": ' + b'{"a":' * 40 + b"1" + b"}" * 41, None),
        ({"name": "a b"}, "name"),
        ({"name": 7}, "name"),
        ({}, "name"),
        ({"name": "new", "owner": "me"}, "owner"),
        ({"name": "new", "policy": {"tokens_a_day": 5}}, "policy.tokens_a_day"),
        ({"name": "new", "policy": {"tokens_per_day": -5}}, "policy.tokens_per_day"),
        ({"name": "new", "policy": {"per_model": {"m": {"weight": 2}}}}, "policy.per_model[...].weight"),
    ],
)
async def test_what_is_wrong_with_a_body_is_named(office: Administered, body: object, param: str | None) -> None:
    """400 and the field, down into a policy; nothing is made."""
    answer = await office.ask("POST", "/tenants", body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert "new" not in {tenant.name for tenant in office.registry.tenants()}


async def test_a_body_has_a_bound(office: Administered) -> None:
    """Read by the gateway's own reader."""
    answer = await office.ask("POST", "/tenants", b" " * (front.BODY_BYTES_MAX + 1))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


async def test_a_store_that_is_away_is_a_503(office: Administered) -> None:
    """With a code that says to try again, and no word of what it is."""
    assert (await office.ask("GET", "/whoami")).status == 200
    (office.home / "serving.db").rename(office.home / "away")
    answer = await office.ask("GET", "/tenants")
    (office.home / "away").rename(office.home / "serving.db")
    assert (answer.status, answer.error["code"]) == (503, "store_unavailable")
    assert answer.headers["x-should-retry"] == "true" and b"sql" not in answer.body.lower()
    assert (await office.ask("GET", "/tenants")).status == 200


async def test_requests_beyond_the_bound_are_refused(office: Administered) -> None:
    """They hold memory and threads: as many as may are open, and the others come again. One tenant has a part of them, and all tenants
    together leave room for who administers the platform.
    """
    release = asyncio.Event()

    async def late() -> AsyncIterator[bytes]:
        yield b"{"
        await release.wait()
        yield b"}"

    async def hold(key: str) -> int:
        url = office.world.url + "/admin/v1/whoami"
        async with office.world.client.post(url, data=late(), headers={"Authorization": f"Bearer {key}"}) as response:
            return response.status

    async def require_held(keys: list[str], refused: int) -> list[asyncio.Task[int]]:
        held = [asyncio.create_task(hold(key)) for key in keys]
        await until(lambda: sum(task.done() for task in held) == refused)
        return held

    async def over(held: list[asyncio.Task[int]]) -> Counter[int]:
        release.set()
        statuses = Counter(await asyncio.gather(*held))
        release.clear()
        return statuses

    root = office.keys[Role.PLATFORM_ADMIN]
    assert await over(await require_held([root] * (front.OPEN_MAX + 3), 3)) == {503: 3, 405: front.OPEN_MAX}

    member = await require_held([office.keys[Role.MEMBER]] * (front.OPEN_OF_TENANT_MAX + 1), 1)
    assert (await office.ask("GET", "/whoami", role=Role.TENANT_ADMIN)).status == 503
    assert (await office.ask("GET", "/whoami")).status == 200
    assert await over(member) == {503: 1, 405: front.OPEN_OF_TENANT_MAX}

    tenants = range(front.OPEN_OF_OTHERS_MAX // front.OPEN_OF_TENANT_MAX + 1)
    keys = [office.world.key_of_another(f"slow{it}") for it in tenants]
    others = await require_held(keys * front.OPEN_OF_TENANT_MAX, front.OPEN_OF_TENANT_MAX)
    assert (await office.ask("GET", "/whoami")).status == 200
    assert (await over(others))[405] == front.OPEN_OF_OTHERS_MAX
    assert (await office.ask("GET", "/whoami", role=Role.MEMBER)).status == 200


async def test_log_and_metrics_know_routes_and_no_names(office: Administered) -> None:
    """Labels are the routes as they are written, whatever is asked for; the log names the key that asked."""
    await office.ask("GET", "/tenants/acme")
    await office.ask("GET", "/tenants/nobody")
    await until(lambda: len(office.world.lines) >= 2)
    labels = {line["route"] for line in office.world.lines}
    assert labels == {"/admin/v1/tenants/{tenant}"}
    assert {line["tenant"] for line in office.world.lines} == {"platform"}


async def test_answers_are_kept_nowhere(office: Administered) -> None:
    """Some hold a key that is shown once."""
    assert (await office.ask("GET", "/whoami")).headers["cache-control"] == "no-store"


async def test_sealed_answers_whose_day_is_over_are_removed(office: Administered) -> None:
    """By the first request to a gateway too, whatever it asks for: a key is not kept because nobody makes another."""
    with sqlite3.connect(office.home / "serving.db") as raw:
        raw.execute("insert into idempotency values ('id', x'00', x'00', '2020-01-01 00:00:00.000000')")

    def count() -> int:
        with contextlib.closing(sqlite3.connect(office.home / "serving.db")) as raw:
            return int(raw.execute("select count(*) from idempotency").fetchone()[0])

    raw.close()
    assert count() == 1
    await office.ask("GET", "/whoami")
    await until(lambda: count() == 0)
