"""Hook: Ray Serve's autoscaling policy. It returns the number that the directory has decided (`engine.scaling`).

It runs in the event loop of Serve's controller, twice a second: a thread polls the directory once a second, and the
hook returns the last number read. While the directory does not answer, nothing changes.
"""

from __future__ import annotations

import http.client
import logging
import threading
import urllib.request
import weakref
from pathlib import Path
from typing import Any

import msgspec
from ray.serve.config import AutoscalingContext

from serving.plane_tls import client_context
from serving.secret import PlaneSecret
from serving.wire import DIRECTORY_ROUTE, WANTED_ROUTE

#: Seconds between two polls, and the time-out of one.
_INTERVAL_S = 1.0
_TIMEOUT_S = 2.0

logger = logging.getLogger("serving.hook")


class Wanted:
    """Serve's autoscaling policy of one model's deployment. Serve creates one at each deploy and drops the old one."""

    def __init__(self, model: str, members: int, directory: str, secret_file: str, ca_file: str | None = None) -> None:
        self._model = model
        #: Serve counts an engine over several nodes as several replicas.
        self._members = members
        self._url = directory + DIRECTORY_ROUTE + WANTED_ROUTE
        self._secret = PlaneSecret(Path(secret_file))
        self._engines: int | None = None
        # Only the directory may get the secret: no proxy from the environment, no target of a redirect.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirects()]
        if ca_file:
            handlers.append(urllib.request.HTTPSHandler(context=client_context(Path(ca_file))))
        self._opener = urllib.request.build_opener(*handlers)
        threading.Thread(target=_follow, args=(weakref.ref(self),), daemon=True).start()

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and no state for Serve to keep. Until the first answer, the current number."""
        engines = self._engines
        return (context.target_num_replicas if engines is None else engines * self._members), {}

    def read(self) -> None:
        """Poll the directory; on any failure the last number stays."""
        request = urllib.request.Request(self._url, headers={"Authorization": f"Bearer {self._secret.sent}"})
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                wanted = msgspec.json.decode(answer.read(), type=dict[str, int] | None)
        except (OSError, http.client.HTTPException, msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.debug("no answer from the directory about %s: %s", self._model, type(error).__name__)
            return
        # None: the directory has just started and lacks reports.
        if wanted is not None and self._model in wanted:
            self._engines = wanted[self._model]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: object) -> None:
        """None: a redirect is an error."""


def _follow(reference: weakref.ref[Wanted]) -> None:
    """Poll until Serve has dropped the hook."""
    pause = threading.Event()
    while hook := reference():
        hook.read()
        del hook
        pause.wait(_INTERVAL_S)
