"""Local: the whole stack on this machine, in the foreground: `serving up`.

    serving up ─┬─ keeper (ends the others when `up` is killed)
                ├─ gateway (a process of its own: the same command as in production)
                └─ Ray ── directory, replica ── supervisor ── vLLM

However it ends, every process that it started ends with it; and it ends, in one sentence, when a process ends that it
cannot be without.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

from serving import catalog, config, secret
from serving.config import Settings
from serving.engine import adapters, command, driver, engine, leftovers, shared_memory, supervisor
from serving.engine import app as engine_app
from serving.engine.checkpoints import store as checkpoints
from serving.engine.reports import Reports
from serving.engine.specs import Deployment, deployment_of
from serving.engine.stack import STOPPING, Lost, Stack, Stopped, signals_ignored
from serving.errors import Refusal
from serving.secret import PlaneSecret
from serving.wire import ASLEEP, ReplicaState, Task

#: MiB that Ray and the gateway need, and each engine; seen resident: see serving/PROVEN.md.
_BASE_MEMORY_MIB = 1024
_ENGINE_MEMORY_MIB = 4 * 1024
#: Seconds between two polls while waiting.
_POLL_INTERVAL_S = 0.2
#: Bytes at which the gateway's log is rotated, one old log kept.
_MAX_LOG_BYTES = 64 * 1024 * 1024
#: Seconds between two looks at a running stack: its log's size, its engines' failures.
_LOOK_INTERVAL_S = 5.0
#: Those that a terminal sends to every process started from it.
_TERMINALS = {signal.SIGINT, signal.SIGHUP}
#: Seconds after which an unchanged state is printed again.
_PROGRESS_INTERVAL_S = 10.0
#: Seconds that the gateway gets after `drain_timeout_s` to write its ledger and exit.
_GATEWAY_GRACE_S = 5.0


def up(settings: Settings) -> None:
    """Serve the settings' models here until stopped; raises Refusal before anything starts, or when a part fails."""
    if command.is_gpu_build():
        driver.require()  # whatever the models: it runs none without
    models = [catalog.find(wanted.name, settings.own_models) for wanted in settings.models]
    # First, because this refuses what cannot work before anything is downloaded.
    deployments = [
        deployment_of(model, wanted, settings, checkpoints.folder_of(model, settings.home))
        for model, wanted in zip(models, settings.models, strict=True)
    ]
    _refuse_gpus(deployments)
    _refuse_adapters(deployments)
    gateway = settings.gateway
    leftovers.sweep()  # first, because a stack that was killed may still hold the port and the memory
    _refuse_taken_port(gateway.host, gateway.port)
    engines = [it.spec for it in deployments for _ in range(it.wanted.max_replicas)]
    shared_memory.require(engines)
    _refuse_small_memory(settings, sum(it.host_kv_gib for it in engines))
    _make_home(settings.home)
    stack = Stack()
    with _alone(settings.home), stack.stops_at_signals(), stack.ends():
        for model, it in zip(models, deployments, strict=True):
            checkpoints.ensure(model, settings.home, _say)
            if it.spec.draft and (draft := catalog.draft_of(model)):
                checkpoints.ensure(draft, settings.home, _say)
        _refuse_adapters(deployments)  # once more, now that there is a checkpoint to compare their shapes with
        secret.create_if_absent(settings.home)
        _serve(settings, models, deployments, stack)


def _refuse_gpus(deployments: list[Deployment]) -> None:
    """Refuse GPU profiles on vLLM's CPU build, before 60 GiB are downloaded for them."""
    for it in deployments:
        if it.spec.gpus_per_node and command.is_cpu_build():
            raise Refusal(
                f"{it.spec.model} is to run on {it.spec.gpus_per_node} GPUs, and vLLM's CPU build is installed here:"
                " this profile is for a cluster (deploy/README.md)."
            )


def _refuse_adapters(deployments: list[Deployment]) -> None:
    """Refuse adapters that cannot be loaded. In a cluster their files are elsewhere: a replica skips a broken one instead."""
    for it in deployments:
        if it.spec.lora:
            adapters.examine_all(it.wanted.adapters, it.spec.lora, Path(it.spec.checkpoint))


def _serve(settings: Settings, models: list[catalog.Model], deployments: list[Deployment], stack: Stack) -> None:
    started = time.monotonic()
    directory_port = engine.free_port("127.0.0.1")
    _say("Starting Ray ...")
    directory = f"http://127.0.0.1:{directory_port}"
    with (
        leftovers.ray_folder(stack.name) as folder,
        stack.keeps_logs(folder, settings.home / "logs" / "ray"),
        _local_ray(directory_port, settings.home, folder, stack),
    ):
        # Cell names must differ: a gateway takes from each cell only what concerns that cell's replicas.
        engine_app.deploy(f"{socket.gethostname()}:{directory_port}", directory, settings, deployments)
        names = ", ".join(model.name for model in models)
        _say(f"Starting vLLM with {names} ({time.monotonic() - started:.0f} s so far) ...")
        # Nested in Ray's, so that the gateway ends first: engines drain at once when no client streams from them.
        with _gateway_process(settings, directory) as gateway:
            reports = Reports(directory, PlaneSecret(settings.secret_file))
            _wait_for_models(settings, gateway, reports, len(models), started)
            print(banner(settings, models, time.monotonic() - started), flush=True)
            code = _end_of(gateway, _gateway_log(settings), reports)
    raise Refusal(f"The gateway ended with exit code {code}; see the end of {_gateway_log(settings)}.")


def banner(settings: Settings, models: list[catalog.Model], seconds: float) -> str:
    """The ready message: base URL, key, a curl line that works when pasted, and what these models are."""
    base_url = f"http://{settings.gateway.host}:{settings.gateway.port}/v1"
    key_file = settings.store.first_key_file or settings.home / "admin.key"
    # With a shared database, the operator hands out keys.
    key = key_file.read_text().strip() if key_file.exists() else "$KEY"
    route, body = _example(next((model for model in models if model.task is Task.GENERATE), models[0]))
    summaries = "\n".join(model.summary for model in models)
    return f"""
Ready after {seconds:.0f} s. {summaries}

  Base URL  {base_url}
{_console_line(settings)}  API key   {key}

  curl {base_url}{route} -H 'Authorization: Bearer {key}' \\
    -H 'Content-Type: application/json' \\
    -d '{json.dumps(body)}'

Ctrl-C stops everything. Logs and the key are in {settings.home}."""


def _console_line(settings: Settings) -> str:
    """Where the console is, if there is one."""
    console, gateway = settings.gateway.console, settings.gateway
    if not console.enabled:
        return ""
    return f"  Console   {console.url or f'http://{gateway.host}:{console.port or gateway.port}'}/console\n"


def _example(model: catalog.Model) -> tuple[str, dict[str, object]]:
    """A route below the base URL and a body that shows what a model does."""
    # Each word of the default model's answer leads any other by 1.0 nat or more: tests/engine/checkpoints/test_margins.py.
    question = "Name the capital of France."
    if model.task is Task.EMBED:
        return "/embeddings", {"model": model.name, "input": question}
    return "/chat/completions", {"model": model.name, "messages": [{"role": "user", "content": question}]}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _make_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / "logs").mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise Refusal(f"The folder {home} cannot be used: {error.strerror}; set SERVING_HOME to another.") from None


def _refuse_taken_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Refusal(
                f"Port {port} on {host} cannot be used: {error.strerror}; choose another with --port."
            ) from None


def _refuse_small_memory(settings: Settings, host_kv_gib: float) -> None:
    memory = psutil.virtual_memory()
    engines = sum(model.max_replicas for model in settings.models)
    # vLLM checks its share when its engine starts, after the engines before it have taken theirs.
    share = int(memory.total * settings.engine.memory_share)
    needed = max(_BASE_MEMORY_MIB * 1024**2 + engines * _ENGINE_MEMORY_MIB * 1024**2, share) + host_kv_gib * 1024**3
    if memory.available < needed:
        raise Refusal(
            f"This needs {needed / 1024**3:.1f} GiB of free memory and the machine has {memory.available / 1024**3:.1f}; "
            "stop something, serve fewer models, or lower engine.memory_share or a model's kv_offloading_gib."
        )


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Lock the home: two stacks would overwrite each other's settings and logs. The kernel releases the lock when its holder dies."""
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refusal(f"Another `serving up` uses {home}: set SERVING_HOME to another folder.") from None
        yield


@contextlib.contextmanager
def _local_ray(directory_port: int, home: Path, folder: Path, stack: Stack) -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    # Ray's processes inherit this mask, and so live until they are stopped in order (CELL-6).
    signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINALS)
    try:
        engine_app.start_local_ray(directory_port, home, folder)
    except SystemExit:
        raise Stopped from None  # what Ray makes of SIGTERM while it starts
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray has replaced them with its own
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TERMINALS)
    try:
        yield
    finally:
        with signals_ignored():
            _say("Stopping ...")
            # Parts may be missing already, or die now, when a signal went to all of them. What is left will be killed.
            # Ray prints of Serve's controller that it was killed, which is how Serve ends it.
            with contextlib.suppress(KeyboardInterrupt, Exception), contextlib.redirect_stdout(io.StringIO()):
                if stack.is_whole:
                    stack.end_serve()
                    engine_app.stop_serve()
                    stack.is_over()
                    engine_app.stop_local_ray()


@contextlib.contextmanager
def _gateway_process(settings: Settings, directory: str) -> Iterator[subprocess.Popen[bytes]]:
    settings_file = settings.home / "logs" / "gateway-settings.yaml"
    resolved = config.override(settings, gateway={"directories": (directory,)})
    settings_file.write_text(yaml.safe_dump(resolved.model_dump(mode="json")))
    with _gateway_log(settings).open("ab") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "serving", "--settings", str(settings_file)),
                *("gateway", "--parent", str(os.getpid())),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # The file already holds what the environment says.
            env={name: value for name, value in os.environ.items() if not name.startswith(config.ENV_PREFIX)},
            start_new_session=True,  # Ctrl-C in the terminal goes to this process, which stops the gateway
        )
    try:
        yield process
    finally:
        with signals_ignored():
            process.terminate()
            try:
                process.wait(settings.gateway.drain_timeout_s + _GATEWAY_GRACE_S)
            except (subprocess.TimeoutExpired, Lost):
                process.kill()


def _end_of(gateway: subprocess.Popen[bytes], log: Path, reports: Reports) -> int:
    """Wait until the gateway exits, rotating its log and telling of engines meanwhile; returns its exit code."""
    end = select.poll()  # `Popen.wait` with a time-out looks twenty times a second
    end.register(os.pidfd_open(gateway.pid), select.POLLIN)
    while not end.poll(_LOOK_INTERVAL_S * 1000):
        supervisor.trim(log, _MAX_LOG_BYTES)
        for line in reports.news():
            _say(f"  {line}")
    return gateway.wait()


def _gateway_log(settings: Settings) -> Path:
    return settings.home / "logs" / "gateway.log"


def _wait_for_models(
    settings: Settings, gateway: subprocess.Popen[bytes], reports: Reports, count: int, started: float
) -> None:
    """Return when every model answers; raises Refusal when a model or the gateway fails."""
    port = settings.gateway.metrics_port or settings.gateway.port
    url = f"http://{settings.gateway.host}:{port}/health/models"
    reported, reported_at = "", started
    while True:
        if gateway.poll() is not None:
            raise Refusal(f"The gateway did not start; see the end of {_gateway_log(settings)}.")
        states = _model_states(url)
        if len(states) == count and set(states.values()) <= {ReplicaState.READY, ASLEEP}:
            reports.news()
            return
        for line in reports.news():
            _say(f"  {line}")
        state = ", ".join(f"{name}: {state}" for name, state in states.items())
        if state and (state != reported or time.monotonic() - reported_at > _PROGRESS_INTERVAL_S):
            reported, reported_at = state, time.monotonic()
            _say(f"  {state} ({reported_at - started:.0f} s; about 40 s a model on 2 cores)")
        if time.monotonic() - started > settings.engine.start_timeout_s * count:
            raise Refusal(
                f"Not every model answered within {settings.engine.start_timeout_s * count:.0f} s{_because(reports)}; "
                f"see {settings.home / 'logs'}."
            )
        time.sleep(_POLL_INTERVAL_S)


def _because(reports: Reports) -> str:
    return f", and the last engine failed because {reports.last_failure}" if reports.last_failure else ""


def _model_states(url: str) -> dict[str, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        text = error.read()
    except OSError:
        return {}
    try:
        return dict(json.loads(text).get("models", {}))
    except ValueError:
        return {}
