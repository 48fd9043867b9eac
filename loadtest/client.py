"""Client: one request over one connection, and what became of it. Plain http.client, which gevent makes cooperative.

Not Locust's FastHttpSession, which would hide the gaps between tokens (LT-3). `read1` returns what has arrived
(tests/loadtest/test_client.py measures it); it costs the same CPU as geventhttpclient's reader, 25 us a chunk, measured on
32 streams in one run.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

from loadtest.answers import Answer, Stream, embeddings, refusal
from loadtest.conversations import Request
from loadtest.failures import Cut, Failed, Malformed, TimedOut, Unreachable
from loadtest.outcomes import RequestOutcome, packed
from loadtest.workload import Session

#: Bytes asked of the socket at once; what has arrived is returned, however little.
READ_BYTES = 64 * 1024


class Api:
    """An OpenAI-compatible API. `silence_s` is how long it may say nothing; `clock` counts from the start of the run."""

    def __init__(self, url: str, key: str, silence_s: float, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._parts = urlsplit(url)
        self._path = self._parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._silence_s = silence_s
        self._tls = ssl.create_default_context() if self._parts.scheme == "https" else None

    def ask(self, session: Session, turn: int, due_s: float, request: Request) -> tuple[RequestOutcome, Answer | None]:
        """Send one request and read its answer to the end; a failure is in the outcome, and there is no answer."""
        began_s, stream = self.clock(), Stream()
        failed: Failed | None = None
        answer: Answer | None = None
        try:
            answer = self._exchange(request, stream)
        except Failed as error:
            failed = error
        received = answer or stream.answer
        outcome = RequestOutcome(
            session=session.number,
            turn=turn,
            kind=session.kind,
            due_s=due_s,
            began_s=began_s,
            ended_s=self.clock(),
            failure_kind=failed.kind if failed else "",
            failure=str(failed) if failed else "",
            first_s=received.instants_s[0] if received.instants_s else None,
            prompt_tokens=received.usage.prompt_tokens,
            output_tokens=received.usage.completion_tokens,
            gaps=packed(received.instants_s),
        )
        return outcome, answer

    def _exchange(self, request: Request, stream: Stream) -> Answer:
        connection = self._connection()
        try:
            response = self._answered(connection, request)
            return self._read(response, request, stream)
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._tls:
            return http.client.HTTPSConnection(host, port, timeout=self._silence_s, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=self._silence_s)

    def _answered(self, connection: http.client.HTTPConnection, request: Request) -> http.client.HTTPResponse:
        body = json.dumps(request.body).encode()
        try:
            connection.request("POST", self._path + request.path, body, self._headers)
            return connection.getresponse()
        except TimeoutError:
            raise TimedOut("no headers") from None
        except (http.client.HTTPException, OSError) as error:
            raise Unreachable(type(error).__name__) from None

    def _read(self, response: http.client.HTTPResponse, request: Request, stream: Stream) -> Answer:
        content_type = response.headers.get("Content-Type", "")
        try:
            if response.status != 200:
                raise refusal(response.status, content_type, response.read())
            if not request.is_streamed:
                return embeddings(response.read())
            if not content_type.startswith("text/event-stream"):
                raise Malformed("a stream that is no text/event-stream")
            while data := response.read1(READ_BYTES):
                stream.feed(data, self.clock())
            return stream.end()
        except TimeoutError:
            raise TimedOut("a silent answer") from None
        except (http.client.HTTPException, OSError) as error:
            raise Cut(f"an answer cut short ({type(error).__name__})") from None
