"""Front: what stands between the gateway's event loop and `/admin/v1`: bounds, time limits, threads, errors.

The application behind it is made at its first request: a gateway that nobody administers does not pay for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import msgspec

from serving.errors import (
    ApiError,
    Conflict,
    GatewayFull,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    Refusal,
    ResourceConflict,
    ResourceNotFound,
    StaleRevision,
    StoreUnavailable,
)
from serving.gateway.api.admin.office import Desk, Office
from serving.gateway.api.visit import Visit
from serving.gateway.dialects import structure
from serving.gateway.http.asgi import Header, Message, require_json
from serving.gateway.identity.identity import Identity
from serving.gateway.nouns import Caller, Role, Route

if TYPE_CHECKING:
    from serving.gateway.api.admin.application import Application

#: What the gateway's table of routes has for all of them.
PATH = "/admin/v1/{id}"
#: Bytes of a request's body; a policy of 256 models has 100 KB.
BODY_BYTES_MAX = 256 * 1024
#: Objects and lists inside one another; a tenant with a policy has three. What reads them recurses.
NESTING_MAX = 32
#: Requests that are read, wait for a thread or have one.
OPEN_MAX = 32
#: Of them, those of one tenant, and of all who do not administer the platform: clients that send slowly, or in bulk, keep no platform
#: administrator from revoking a key (TEN-50).
OPEN_OF_TENANT_MAX, OPEN_OF_OTHERS_MAX = 8, 24
#: A bulkhead: a database that hangs takes these threads and no others. Reports have one of their own, which keeps no
#: administrator from revoking a key.
THREADS = 2
#: Seconds until a client hears that the database does not answer.
ANSWER_S = 30.0

#: Among tenants, all who administer the platform.
_PLATFORM = ""
#: Headers that the application reads.
_PASSED = ("idempotency-key", "if-match")
#: Headers that it answers with.
_ANSWERED = (b"etag", b"x-next")


class Front:
    """Answers everything under `/admin/v1/`. `with Front(identity, office, body_s=60) as front: …`"""

    def __init__(self, identity: Identity, office: Office, *, body_s: float) -> None:
        self._identity = identity
        self._office = office
        self._body_s = body_s
        #: By tenant.
        self._open = Counter[str]()
        self._application: asyncio.Task[Application] | None = None
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="admin")
        self._report_thread = ThreadPoolExecutor(1, thread_name_prefix="admin-reports")

    def __enter__(self) -> Self:
        self._office.sight.open_in(asyncio.get_running_loop())
        return self

    def __exit__(self, *_: object) -> None:
        for threads in (self._threads, self._report_thread):
            threads.shutdown(wait=False, cancel_futures=True)

    async def serve(self, visit: Visit) -> None:
        """Answer one request; raises ApiError, and ClientLeft when the client does not wait for the answer."""
        # Before it counts as open: who is calling may have to wait for an issuer that hangs.
        visit.record.caller = caller = await self._identity.identify(visit.request)
        with self._opened(caller):
            await self._serve(visit, caller)

    @contextmanager
    def _opened(self, caller: Caller) -> Iterator[None]:
        tenant_id = _PLATFORM if caller.role is Role.PLATFORM_ADMIN else caller.tenant_id
        if self._is_full(tenant_id):
            raise GatewayFull("Too many administrative requests are open; please try again.", retry_after_s=1)
        self._open[tenant_id] += 1
        try:
            yield
        finally:
            self._open[tenant_id] -= 1
            if not self._open[tenant_id]:
                del self._open[tenant_id]

    def _is_full(self, tenant_id: str) -> bool:
        everyone = self._open.total()
        if everyone >= OPEN_MAX or tenant_id == _PLATFORM:
            return everyone >= OPEN_MAX
        others = everyone - self._open[_PLATFORM]
        return others >= OPEN_OF_OTHERS_MAX or self._open[tenant_id] >= OPEN_OF_TENANT_MAX

    async def _serve(self, visit: Visit, caller: Caller) -> None:
        body = await visit.body(BODY_BYTES_MAX, self._body_s)
        application = await self.application()
        found = application.find(visit.request.method, visit.request.path)
        visit.record.route = Route(found.template)
        found.require_known(visit.request.query_names())
        if body:
            require_json(visit.request)
        threads = self._report_thread if found.is_report else self._threads
        work = partial(_answered, application, _scope(visit, Desk(caller, self._office)), body)
        answer = await self._in_time(threads, work)
        await visit.responder.whole(answer.status, answer.body, answer.headers, answer.content_type)

    async def _in_time(self, threads: ThreadPoolExecutor, work: Callable[[], Answer]) -> Answer:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.get_running_loop().run_in_executor(threads, work)
        except TimeoutError:
            raise StoreUnavailable("no answer in time") from None
        except Refusal as refusal:
            raise _as_answer(refusal) from None

    async def application(self) -> Application:
        """What answers, made at the first request."""
        if self._application is None:
            self._report_thread.submit(self._office.repetitions.remove_old, self._office.registry)
            self._application = asyncio.create_task(asyncio.to_thread(_make))
        # Shielded: one client that leaves must not fail the others who wait for it.
        return await asyncio.shield(self._application)


class Answer:
    """What the application sent."""

    def __init__(self) -> None:
        self.status = 500
        self.content_type = b"application/json"
        #: Answers hold keys that are shown once.
        self.headers: list[Header] = [(b"cache-control", b"no-store")]
        self.body = b""

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            sent = dict(message["headers"])
            self.content_type = sent.get(b"content-type", self.content_type)
            self.headers += [(name, sent[name]) for name in _ANSWERED if name in sent]
        else:
            self.body += message.get("body", b"")


def _make() -> Application:
    from serving.gateway.api.admin import application

    return application.make()


def _scope(visit: Visit, desk: Desk) -> dict[str, Any]:
    """The request as ASGI has it; `desk` is what its handler works with."""
    sent = [(name, value) for name in _PASSED if (value := visit.request.header(name)) is not None]
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET" if visit.request.method == "HEAD" else visit.request.method,
        "scheme": "http",
        "path": visit.request.path,
        "query_string": visit.request.query_string,
        "root_path": "",
        "headers": [
            (b"content-type", b"application/json"),
            *((name.encode(), value.encode("latin-1")) for name, value in sent),
        ],
        "desk": desk,
    }


def _answered(application: Application, scope: dict[str, Any], body: bytes) -> Answer:
    """In a thread, with an event loop of its own that runs nothing else: handlers may block."""
    _require_document(body)
    return asyncio.run(_asked(application, scope, body))


async def _asked(application: Application, scope: dict[str, Any], body: bytes) -> Answer:
    answer = Answer()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    await application.app(scope, receive, answer.take)
    return answer


def _require_document(body: bytes) -> None:
    """Refuses a body that is no JSON, lone surrogates included, which no database takes, or nested deeper than a reader can follow."""
    try:
        document = msgspec.json.decode(body) if body else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.") from None
    if not isinstance(document, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    if structure.is_deeper_than(document, NESTING_MAX):
        raise InvalidRequest(f"The request body is nested deeper than {NESTING_MAX} levels.")


def _as_answer(refusal: Refusal) -> ApiError:
    if isinstance(refusal, NotFound):
        return ResourceNotFound()
    if isinstance(refusal, Conflict):
        return ResourceConflict(str(refusal))
    if isinstance(refusal, StaleRevision):
        return PreconditionFailed(str(refusal))
    return InvalidRequest(str(refusal))
