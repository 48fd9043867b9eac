"""Hook: Ray Serve asks here how many replicas a model should have; the directory has decided (`engine.scaling`).

It runs in Serve's controller, ten times a second and within its loop: a thread reads the directory once a second, the
hook says the last number read. A silent directory changes nothing.
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

#: Seconds between two looks, and what one may take.
_INTERVAL_S = 1.0
_TIMEOUT_S = 2.0

logger = logging.getLogger("serving.hook")


class Wanted:
    """Serve's autoscaling policy of one model's deployment. Serve makes one at each deploy, and forgets the old one."""

    def __init__(self, model: str, members: int, directory: str, secret_file: str, ca_file: str | None = None) -> None:
        self._model = model
        #: Serve counts an engine over several nodes as several replicas.
        self._members = members
        self._url = directory + DIRECTORY_ROUTE + WANTED_ROUTE
        self._secret = PlaneSecret(Path(secret_file))
        self._engines: int | None = None
        # The secret is for the directory alone: neither a proxy of the environment nor a redirect may get it.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirects()]
        if ca_file:
            handlers.append(urllib.request.HTTPSHandler(context=client_context(Path(ca_file))))
        self._opener = urllib.request.build_opener(*handlers)
        threading.Thread(target=_follow, args=(weakref.ref(self),), daemon=True).start()

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Replicas, and no state for Serve to keep. As many as there are until a directory has spoken."""
        engines = self._engines
        return (context.target_num_replicas if engines is None else engines * self._members), {}

    def read(self) -> None:
        """Ask the directory; whatever fails leaves the last number standing."""
        request = urllib.request.Request(self._url, headers={"Authorization": f"Bearer {self._secret.sent}"})
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                wanted = msgspec.json.decode(answer.read(), type=dict[str, int] | None)
        except (OSError, http.client.HTTPException, msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.debug("the directory did not say how many engines of %s: %s", self._model, type(error).__name__)
            return
        # None: a young directory has not heard from everyone, and knows nothing yet.
        if wanted is not None and self._model in wanted:
            self._engines = wanted[self._model]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: object) -> None:
        """None: an answer that leads elsewhere is an error."""


def _follow(reference: weakref.ref[Wanted]) -> None:
    """Read until Serve has forgotten the hook."""
    pause = threading.Event()
    while hook := reference():
        hook.read()
        del hook
        pause.wait(_INTERVAL_S)
