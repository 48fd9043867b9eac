"""Sources: where a gateway learns of replicas: a cell's directory, or an engine without one. Silence says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
#: What a source's answer can fail with once it has been reached; msgspec leaves broken UTF-8 to Python's own error.
_NO_ANSWER = (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError)


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
                if response.status != 200:
                    raise Silence(f"status {response.status}")
                answer = msgspec.json.decode(await response.read(), type=DirectoryAnswer)
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
                return await session.post(self._url, data=body, headers=headers)
            except aiohttp.ClientConnectorError:
                continue
        return await session.post(self._url, data=body, headers=headers)


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
        async with session.get(self._url + LIVENESS_ROUTE[1]) as response:
            return response.status == 200

    async def _list_models(self, session: aiohttp.ClientSession) -> Sequence[_ModelCard]:
        async with session.get(f"{self._url}/v1/models", headers=bearer(self._secret)) as response:
            if response.status != 200:
                raise Silence(f"status {response.status}")
            return msgspec.json.decode(await response.read(), type=_ModelList).data

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


def bearer(secret: PlaneSecret | None) -> dict[str, str]:
    """What the engine plane wants to see from a gateway."""
    return {} if secret is None else {"Authorization": f"Bearer {secret.sent}"}
