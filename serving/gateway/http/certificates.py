"""Certificates: what the gateway presents and which authorities it trusts, reloaded while it runs: authorities sign for weeks,
and gateways run longer.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from serving.config import Certificate, PlaneTls
from serving.errors import Refusal
from serving.plane_tls import client_context

#: Seconds between two checks of the files: a few `stat` calls.
CHECK_INTERVAL_S = 10.0

log = logging.getLogger(__name__)


@dataclass
class Loaded:
    """A TLS context in use, and how its files are loaded into it."""

    context: ssl.SSLContext
    files: tuple[Path, ...]
    load: Callable[[ssl.SSLContext], None]
    #: Which of several ends counts: the first in a chain, the last among authorities.
    end_of_chain: Callable[[Iterable[float]], float]
    #: When what is in use ends, in seconds since the epoch; None where its file cannot be read as certificates.
    ends_at_s: float | None = field(init=False)
    #: Of the files when they were last looked at.
    seen: tuple[tuple[int, int], ...] | None = field(init=False)

    def __post_init__(self) -> None:
        self.ends_at_s, self.seen = self._end(), self.stamp()

    def stamp(self) -> tuple[tuple[int, int], ...] | None:
        """Changes when a file changes; None while one is missing."""
        try:
            return tuple((status.st_mtime_ns, status.st_ino) for status in (file.stat() for file in self.files))
        except OSError:
            return None

    def _end(self) -> float | None:
        try:
            found = x509.load_pem_x509_certificates(self.files[0].read_bytes())
        except (OSError, ValueError):
            return None
        return self.end_of_chain(it.not_valid_after_utc.timestamp() for it in found)

    def renew(self) -> None:
        """Load the files as they are now, for new connections. Raises OSError and SSLError, and then changes nothing."""
        # Elsewhere first: a certificate and a key that do not belong together would leave a context with neither.
        self.load(ssl.SSLContext(self.context.protocol))
        self.load(self.context)
        self.ends_at_s = self._end()


def shown(tls: Certificate) -> Loaded:
    """The certificate that the API presents. Raises Refusal when the files cannot be used."""

    def load(context: ssl.SSLContext) -> None:
        context.load_cert_chain(tls.certificate_file, tls.key_file)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        load(context)
    except (OSError, ssl.SSLError) as error:
        is_read = isinstance(error, ssl.SSLError)
        reason = "they are no certificate and its key" if is_read else (error.strerror or "").lower()
        raise Refusal(
            f"The certificate of the API, {tls.certificate_file} with {tls.key_file}, cannot be used: {reason}."
        ) from None
    return Loaded(context, (tls.certificate_file, tls.key_file), load, min)


def trusted(plane: PlaneTls) -> Loaded:
    """The authorities trusted for the engine plane; a trusted one stays so until the next start. Raises Refusal."""
    return Loaded(
        client_context(plane.ca_file),
        (plane.ca_file,),
        lambda context: context.load_verify_locations(plane.ca_file),
        max,
    )


def expiries(api: Loaded | None, plane: Loaded | None) -> dict[str, float]:
    """Certificate → when it ends, for those that are used and can be read."""
    ends = {name: loaded.ends_at_s for name, loaded in (("api", api), ("plane", plane)) if loaded}
    return {name: at for name, at in ends.items() if at is not None}


async def follow(all_loaded: Sequence[Loaded], look_s: float = CHECK_INTERVAL_S) -> None:
    """Load renewed files into the contexts in use, until cancelled; at once where they were renewed before this process began."""
    while True:
        for loaded in all_loaded:
            _look(loaded)
        await asyncio.sleep(look_s)


def _look(loaded: Loaded) -> None:
    stamp = loaded.stamp()
    if stamp == loaded.seen:
        return
    loaded.seen = stamp
    try:
        loaded.renew()
    except OSError:  # SSLError is one
        log.warning("%s cannot be used as it is now; what was read before stays", loaded.files[0])
    else:
        log.info("%s was renewed", loaded.files[0])
