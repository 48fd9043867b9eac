"""Progress: does an engine get on? A whole answer's bytes all come at its end, so its silence says nothing: while such an
answer is waited for, the engine's own counters are read.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable

import aiohttp

from serving.gateway.fleet.sources import bearer
from serving.gateway.http.upstream import Upstream
from serving.secret import PlaneSecret
from serving.wire import METRICS_ROUTE

#: Looks at an engine's counters within the time that it may be silent; calls on one engine share those close together.
LOOKS = 4
#: Seconds that a look may take.
LOOK_TIMEOUT_S = 5.0
#: Bytes of a metrics page that are read.
PAGE_BYTES_MAX = 4 * 1024 * 1024

_TOKENS = re.compile(rb"^vllm:(?:generation|prompt)_tokens_total(?:\{[^}\n]*\})? ([0-9.e+]+)", re.MULTILINE)


class Progress:
    """Shared by all calls of a gateway."""

    def __init__(self, upstream: Upstream, secret: PlaneSecret | None, clock: Callable[[], float]) -> None:
        self._upstream = upstream
        self._secret = secret
        self._clock = clock
        #: Engine → when it was last looked at, and its tokens then.
        self._looks: dict[str, tuple[float, float | None]] = {}

    async def silence(self, url: str, silence_s: float) -> None:
        """Return when the engine at `url` has made no token for `silence_s`, for any call.

        An engine without counters says nothing of itself: it is silent from the beginning.
        """
        moved_at, before = self._clock(), None
        while self._clock() - moved_at < silence_s:
            await asyncio.sleep(silence_s / LOOKS)
            tokens = await self._tokens(url, fresh_s=silence_s / LOOKS / 2)
            if None not in (tokens, before) and tokens != before:
                moved_at = self._clock()
            before = before if tokens is None else tokens

    async def _tokens(self, url: str, *, fresh_s: float) -> float | None:
        looked_at, tokens = self._looks.get(url, (-math.inf, None))
        if self._clock() - looked_at < fresh_s:
            return tokens
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                tokens = tokens_in(await self._page(url))
        except (aiohttp.ClientError, TimeoutError):
            tokens = None
        now = self._clock()
        # An older look is taken again, and its engine may be gone: replicas come and go under new addresses.
        self._looks = {it: look for it, look in self._looks.items() if now - look[0] < fresh_s}
        self._looks[url] = now, tokens
        return tokens

    async def _page(self, url: str) -> bytes:
        async with self._upstream.session.get(
            url + METRICS_ROUTE, headers=bearer(self._secret), allow_redirects=False
        ) as response:
            page = bytearray()
            async for piece in response.content.iter_any():
                page += piece
                if response.status != 200 or len(page) > PAGE_BYTES_MAX:
                    return b""
            return bytes(page)


def tokens_in(page: bytes) -> float | None:
    """Tokens that an engine has read and made so far, by its metrics; None where they do not say."""
    found = _TOKENS.findall(page)
    return sum(map(float, found)) if found else None
