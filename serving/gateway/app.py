"""App: the ASGI application. A route table gives the handler; whatever it raises becomes a body, an event, or a cut connection.

serving/README.md has the path of a request through the rooms.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

from serving.errors import ApiError, InternalError
from serving.gateway.api.visit import Handler, Visit
from serving.gateway.dialects import error_body
from serving.gateway.http.asgi import Receive, Request, Responder, Scope, Send
from serving.gateway.http.bodies import error_headers
from serving.gateway.http.cors import Cors
from serving.gateway.http.routing import Routes, require_method
from serving.gateway.http.upstream import stopping
from serving.gateway.nouns import CallRecord, ClientLeft
from serving.gateway.observe.recorder import Recorder
from serving.gateway.observe.tracing import Tracing

#: Seconds in which a client may take the event that ends its stream; a client that does not read is cut off.
LAST_EVENT_S = 1.0

log = logging.getLogger(__name__)


class Gateway:
    """The application. What `running` opens is open between the start and the end of its lifespan."""

    def __init__(
        self,
        routes: Routes[Handler],
        recorder: Recorder,
        tracing: Tracing,
        running: Callable[[], AbstractAsyncContextManager[None]],
        clock: Callable[[], float],
        cors: Cors,
    ) -> None:
        self._routes = routes
        self._recorder = recorder
        self._tracing = tracing
        self._running = running
        self._clock = clock
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live_through(receive, send)
        elif scope["type"] == "http":
            await self._visit(self._received(Request(scope, receive), send))

    async def _live_through(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self._running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    def _received(self, request: Request, send: Send) -> Visit:
        responder = Responder(send, request.request_id(), request.flow, self._cors.headers(request))
        trace = self._tracing.begin(request)
        record = CallRecord(
            request_id=responder.request_id,
            started_at=self._clock(),
            trace_id=trace.trace_id,
        )
        return Visit(request, responder, record, trace, self._clock)

    async def _visit(self, visit: Visit) -> None:
        error: BaseException | None = None
        try:
            with self._recorder.open_request():
                await self._dispatch(visit)
        except ClientLeft as left:
            error = left
        except ApiError as raised:
            error = raised
            await self._answer_error(visit, raised)
        except asyncio.CancelledError as stopped:
            # The server's, at the end of its drain: it has nothing to learn from it, and would log each as a fault.
            error = stopped
            await self._answer_error(visit, stopping())
        except Exception as bug:  # noqa: BLE001 The outermost edge: the client gets a body whatever it was.
            error = bug
            # Where it happened, never its text: that may quote a prompt.
            place = "".join(traceback.format_tb(bug.__traceback__))
            log.error("request %s: unforeseen %s at\n%s", visit.responder.request_id, type(bug).__name__, place)
            await self._answer_error(visit, InternalError("The gateway met an internal error."))
        finally:
            if not visit.is_handed_over:
                self._recorder.settle(visit.record, visit.responder, visit.trace, error)
            # It holds this frame by its traceback, and with it the body: a circle that only the garbage collector would find.
            error = None

    async def _dispatch(self, visit: Visit) -> None:
        visit.request.require_http()
        if (allowed := self._cors.preflight(visit.request)) is not None:
            await visit.responder.start(204, allowed)
            await visit.responder.finish()
            return
        found = self._routes.find(visit.request.method, visit.request.path)
        visit.record.route, visit.argument = found.route, found.argument
        require_method(visit.request.method, found.method)
        await found.handler(visit)

    async def _answer_error(self, visit: Visit, error: ApiError) -> None:
        with suppress(ClientLeft):
            await self._write_error(visit, error)

    async def _write_error(self, visit: Visit, error: ApiError) -> None:
        responder = visit.responder
        if not responder.is_started:
            body = error_body(error, responder.request_id, is_anthropic=visit.is_anthropic)
            await responder.whole(error.status, body, error_headers(error))
        elif visit.error_event and not responder.is_complete:
            try:
                async with asyncio.timeout(LAST_EVENT_S):
                    await responder.write(visit.error_event(error))
                    await responder.finish()
            except TimeoutError:
                responder.cut()
        elif not responder.is_complete:
            # A whole answer broke off. Its client may read no more, and closing alone would wait for it.
            responder.cut()
