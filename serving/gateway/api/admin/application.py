"""Application: FastAPI behind the front: the routes of `/admin/v1`, and the OpenAPI document that describes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from serving.errors import (
    InvalidRequest,
    MethodNotAllowed,
    PreconditionRequired,
    ResourceNotFound,
    RouteNotFound,
    UnknownParameter,
)
from serving.gateway.api.admin import handlers, live, memories, reports, tariffs
from serving.gateway.api.admin.shapes import ErrorAnswer, PolicyFault

PREFIX = "/admin/v1"
DOCUMENT_PATH = f"{PREFIX}/openapi.json"

_ABOUT = (
    "Tenants, keys, policies, prices, usage and audit. Send an administrator's key as `Authorization: Bearer …`. A change names in `If-Match` "
    "the `ETag` of what it is meant for; a creation with an `Idempotency-Key` can be repeated for a day."
)
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "Refused."},
    "5XX": {"model": ErrorAnswer, "description": "Not possible now."},
}


class Found(msgspec.Struct, frozen=True):
    """The route of a request: as the log and metrics name it, the parameters it knows, and which threads it takes."""

    template: str
    parameters: Collection[str]
    is_report: bool

    def require_known(self, names: Collection[str]) -> None:
        """Raises UnknownParameter."""
        for name in sorted(names):
            if name not in self.parameters:
                raise UnknownParameter(name[:64])


class Application:
    """`app` speaks ASGI; `find` says beforehand which of its routes a request has."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        #: What its paths look like → method → route.
        self._routes: dict[re.Pattern[str], dict[str, Found]] = {}
        document = app.openapi()
        for route in app.routes:
            if isinstance(route, APIRoute):
                of_path = self._routes.setdefault(route.path_regex, {})
                for method in route.methods:
                    of_path[method] = _found(
                        route, document["paths"].get(route.path_format, {}).get(method.lower(), {})
                    )

    def find(self, method: str, path: str) -> Found:
        """Raises RouteNotFound, and MethodNotAllowed, which names those that are."""
        of_path = next((it for pattern, it in self._routes.items() if pattern.match(path)), None)
        if of_path is None:
            raise RouteNotFound(f"Invalid URL ({method} {path[:256]})")
        found = of_path.get("GET" if method == "HEAD" else method)
        if found is not None:
            return found
        allowed = ", ".join(sorted(of_path))
        raise MethodNotAllowed(f"Not allowed to {method[:16]} here; use {allowed}.", allowed=allowed)


def make() -> Application:
    """The application; what its handlers work with comes with each request."""
    app = FastAPI(
        title="gpt-oss-serving administration",
        version="1",
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        responses=_ERRORS,
    )
    app.openapi = _described(app)  # type: ignore[method-assign] # FastAPI's own way to change the document
    for router in (handlers.router, tariffs.router, live.router, reports.router, memories.router):
        app.include_router(router, prefix=PREFIX)

    @app.get(DOCUMENT_PATH, operation_id="openapi", tags=["self"], summary="This document.")
    async def document() -> dict[str, Any]:
        return app.openapi()

    app.add_exception_handler(RequestValidationError, _refuse_invalid)
    app.add_exception_handler(HTTPException, _refuse_unread)
    return Application(app)


def _found(route: APIRoute, operation: dict[str, Any]) -> Found:
    known = frozenset(it["name"] for it in operation.get("parameters", ()) if it["in"] == "query")
    return Found(route.path_format, known, reports.TAG in route.tags)


def _described(app: FastAPI) -> Callable[[], dict[str, Any]]:
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(_document(app))
        return document

    return openapi


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = document["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}]
    for operations in document["paths"].values():
        for operation in operations.values():
            # What FastAPI says by itself; here it is a 400 in OpenAI's shape.
            operation["responses"].pop("422", None)
    return document


async def _refuse_invalid(_: Request, error: Exception) -> Response:
    """The first thing that is wrong with a request, as every other refusal of this gateway."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    place, *names = first["loc"]
    if place == "path":
        raise ResourceNotFound
    if (place, names) == ("header", ["if-match"]) and first["type"] == "missing":
        raise PreconditionRequired("Send the ETag of what is to be changed as If-Match, or * for whatever it is now.")
    cause = (first.get("ctx") or {}).get("error")
    where = cause.where if isinstance(cause, PolicyFault) else ""
    param = (".".join(str(name) for name in names) + where).removeprefix(".")[:256]
    if first["type"] == "extra_forbidden" or (isinstance(cause, PolicyFault) and cause.is_unknown):
        raise UnknownParameter(param)
    raise InvalidRequest(f"{param or 'body'}: {cause or first['msg']}."[:512], param=param or None)


async def _refuse_unread(_: Request, __: Exception) -> Response:
    raise InvalidRequest("The request cannot be read.")
