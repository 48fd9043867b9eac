"""A cell's directory, scripted by a test."""

from __future__ import annotations

from typing import Self

import msgspec
from aiohttp import web

from serving.wire import DirectoryAnswer, GatewayReport


class Directory:
    """On a real port, in `async with Directory() as directory`; answers `says`, and 500 without it."""

    def __init__(self) -> None:
        self.says: DirectoryAnswer | bytes | None = None
        self.authorizations: set[str | None] = set()
        self.reports: list[GatewayReport] = []
        self.url = ""
        app = web.Application()
        app.router.add_post("/directory", self.answer)
        self._runner = web.AppRunner(app, access_log=None)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def answer(self, request: web.Request) -> web.Response:
        self.authorizations.add(request.headers.get("Authorization"))
        self.reports.append(msgspec.json.decode(await request.read(), type=GatewayReport))
        if self.says is None:
            return web.Response(status=500)
        return web.Response(body=self.says if isinstance(self.says, bytes) else msgspec.json.encode(self.says))
