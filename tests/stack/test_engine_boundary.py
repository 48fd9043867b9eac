"""From outside, a running engine is closed."""

import re

import pytest

from serving.wire import ENGINE_ROUTES, LIVENESS_ROUTE
from tests.stack.http import bearer, call
from tests.stack.running import Stack

ROUTE = re.compile(r"Route: (\S+), Methods: ([A-Z, ]+)")


@pytest.fixture(scope="module")
def routes(stack: Stack) -> set[tuple[str, str]]:
    """Every route of vLLM's own application, as it lists them in its log at start."""
    (log,) = (stack.home / "logs").glob("engine-*.log")
    found = {
        (method.strip(), path) for path, methods in ROUTE.findall(log.read_text()) for method in methods.split(",")
    }
    assert len(found) > 30, "vLLM no longer lists its routes at start"
    return found


def test_every_route_is_closed_without_the_secret(stack: Stack, routes: set[tuple[str, str]]) -> None:
    """Not one of vLLM's routes but liveness answers a caller without the plane secret, or with a wrong one."""
    url = stack.ready_engine_url()
    for headers in ({}, bearer("wrong"), bearer(stack.key)):
        statuses = {route: call(url, *route, headers=headers)[0] for route in routes}
        assert {route for route, status in statuses.items() if status != 401} == {LIVENESS_ROUTE}


def test_routes_beyond_the_list_are_closed_with_it(stack: Stack, routes: set[tuple[str, str]]) -> None:
    """A stolen secret opens no development, scaling or reload route."""
    url = stack.ready_engine_url()
    for method, path in routes - ENGINE_ROUTES - {LIVENESS_ROUTE}:
        assert call(url, method, path, headers=bearer(stack.secret))[0] == 404, (method, path)


def test_the_directory_wants_the_secret(stack: Stack) -> None:
    """The directory answers gateways only, and never says the secret."""
    url = stack.directory_url()
    assert call(url, "GET", "/directory")[0] == 401
    status, _, body = call(url, "GET", "/directory", headers=bearer(stack.secret))
    assert status == 200 and stack.secret.encode() not in body
