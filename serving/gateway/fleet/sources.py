"""Sources: where a gateway learns of replicas: a cell's directory, or an engine without one. Silence says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import aiohttp
import msgspec

from serving.secret import PlaneSecret
from serving.wire import (
    DIRECTORY_ROUTE,
    LIVENESS_ROUTE,
    DirectoryAnswer,
    GatewayReport,
    Listed,
    ReplicaReport,
    ReplicaState,
    plain_name,
)

#: Connections that one poll of a directory may try: of two pods behind an address, one in 256 polls misses it.
CONNECTS_MAX = 8
#: Bytes of an answer that are read: thousands of replicas.
ANSWER_BYTES_MAX = 4 * 1024 * 1024
#: What an answer that was read cannot be; msgspec leaves broken UTF-8 and deep nesting to Python's own errors.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
#: What a source can fail with besides.
_NO_ANSWER = (aiohttp.ClientError, TimeoutError)


T = TypeVar("T", bound=msgspec.Struct)


class Silence(Exception):
    """A source did not answer: nothing follows from it."""


class Source(Protocol):
    """Where replicas are learned of."""

    name: str
    #: What metrics call it: no address.
    label: str

    async def ask(self, session: aiohttp.ClientSession, report: GatewayReport) -> DirectoryAnswer:
        """Tell what this gateway sees; returns what the source lists now; raises Silence."""
        ...


class DirectorySource:
    """One cell's directory."""

    def __init__(self, base_url: str, secret: PlaneSecret | None, label: str) -> None:
        self.name = base_url
        #: Its cell's name, once an answer has named it.
        self.label = label
        self._url = base_url.rstrip("/") + DIRECTORY_ROUTE
        self._secret = secret

    async def ask(self, session: aiohttp.ClientSession, report: GatewayReport) -> DirectoryAnswer:
        try:
            body = msgspec.json.encode(report)
            # Not kept open: two Ray clusters stand behind one address while one takes the other's place, and both must be asked.
            headers = bearer(self._secret) | {"Connection": "close"}
            async with await self._post(session, body, headers) as response:
                answer = await _answered(response, DirectoryAnswer)
        except _NO_ANSWER as error:
            raise Silence(type(error).__name__) from None
        self.label = plain_name(answer.cell)
        return answer

    async def _post(
        self, session: aiohttp.ClientSession, body: bytes, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        """Some pods behind the address have no proxy: Ray Serve runs one where a replica is. The next may have one."""
        for _ in range(CONNECTS_MAX - 1):
            try:
                return await session.post(self._url, data=body, headers=headers, allow_redirects=False)
            except aiohttp.ClientConnectorError:
                continue
        return await session.post(self._url, data=body, headers=headers, allow_redirects=False)


class _ModelCard(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


class EngineSource:
    """An engine without a directory: its own `/health` and `/v1/models` stand in for one.

    No token is generated to prove it ready, as a replica's supervisor does.
    """

    def __init__(self, url: str, secret: PlaneSecret | None, label: str) -> None:
        self.name = url
        self.label = label
        self._url = url.rstrip("/")
        self._secret = secret
        self._models: Sequence[_ModelCard] = ()

    async def ask(self, session: aiohttp.ClientSession, report: GatewayReport) -> DirectoryAnswer:
        try:
            state = ReplicaState.READY if await self._is_healthy(session) else ReplicaState.FAILED
            if state is ReplicaState.READY:
                self._models = await self._list_models(session)
        except aiohttp.ClientConnectorError as error:
            if not self._models:
                # It has never answered: which models it would serve is not known.
                raise Silence(type(error).__name__) from None
            state = ReplicaState.FAILED
        except _NO_ANSWER as error:
            raise Silence(type(error).__name__) from None
        return self._answer(state)

    async def _is_healthy(self, session: aiohttp.ClientSession) -> bool:
        async with session.get(self._url + LIVENESS_ROUTE[1], allow_redirects=False) as response:
            return response.status == 200

    async def _list_models(self, session: aiohttp.ClientSession) -> Sequence[_ModelCard]:
        headers = bearer(self._secret)
        async with session.get(f"{self._url}/v1/models", headers=headers, allow_redirects=False) as response:
            return (await _answered(response, _ModelList)).data

    def _answer(self, state: ReplicaState) -> DirectoryAnswer:
        listed = [
            Listed(
                ReplicaReport(
                    replica_id=f"{self._url}#{card.id}",
                    model=card.id,
                    url=self._url,
                    state=state,
                    context_tokens=card.max_model_len or 0,
                ),
                heard_ago_s=0.0,
            )
            for card in self._models
        ]
        return DirectoryAnswer(cell=self._url, incarnation="", is_complete=True, replicas=tuple(listed))


async def _answered(response: aiohttp.ClientResponse, shape: type[T]) -> T:
    """The answer of a source, within its bound; raises Silence with the reason for the log."""
    if response.status != 200:
        raise Silence(f"status {response.status}")
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > ANSWER_BYTES_MAX:
            raise Silence(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(body, type=shape)
    except _UNREADABLE:
        raise Silence("an answer in another shape") from None


def bearer(secret: PlaneSecret | None) -> dict[str, str]:
    """What the engine plane wants to see from a gateway."""
    return {} if secret is None else {"Authorization": f"Bearer {secret.sent}"}
