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

    def watch(self, url: str, silence_s: float, on_silence: Callable[[], None]) -> Lookout:
        """Call `on_silence` as soon as `silence` would return, unless the watch is cancelled before."""
        return Lookout(self, url, silence_s, on_silence)

    async def silence(self, url: str, silence_s: float, *, waited_s: float = 0.0) -> None:
        """Return when the engine at `url` has made no token for `silence_s`, for any call.

        An engine without counters says nothing of itself: it is silent from the beginning. `waited_s` is for how long it has
        been asked already: until the first look, for one that has waited as long.
        """
        moved_at, before = self._clock() - waited_s, None
        pause_s = silence_s / LOOKS - waited_s
        while self._clock() - moved_at < silence_s:
            await asyncio.sleep(pause_s)
            pause_s = silence_s / LOOKS
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


class Lookout:
    """One call's look-out for its engine's silence. Nearly every call is over before the first look: no task until then."""

    def __init__(self, progress: Progress, url: str, silence_s: float, on_silence: Callable[[], None]) -> None:
        self._progress = progress
        self._url = url
        self._silence_s = silence_s
        self._on_silence = on_silence
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(silence_s / LOOKS, self._begin)

    def cancel(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        waited_s = self._silence_s / LOOKS
        self._task = asyncio.create_task(self._progress.silence(self._url, self._silence_s, waited_s=waited_s))
        self._task.add_done_callback(lambda task: None if task.cancelled() else self._on_silence())


def tokens_in(page: bytes) -> float | None:
    """Tokens that an engine has read and made so far, by its metrics; None where they do not say."""
    found = _TOKENS.findall(page)
    return sum(map(float, found)) if found else None
