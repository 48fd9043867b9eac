"""Command: the one launcher. Which command line and environment start a vLLM server, on CPU and GPU alike?"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from serving.config import EngineSettings
from serving.engine import processes
from serving.engine.boundary import MARKERS_VARIABLE, SECRET_FILE_VARIABLE
from serving.wire import Task


class EngineSpec(msgspec.Struct, frozen=True):
    """All that one engine needs to know; plain data, so that Ray can carry it and a version can hash it."""

    model: str
    checkpoint: str
    task: Task
    context_tokens: int
    settings: EngineSettings
    secret_file: str
    log_folder: str
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    #: Extra environment a checkpoint asks for.
    environment: tuple[tuple[str, str], ...] = ()


def arguments(spec: EngineSpec, port: int) -> list[str]:
    """vLLM's `serve` command line for this engine on `port`."""
    settings = spec.settings
    line = [
        sys.executable,
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        spec.checkpoint,
        "--served-model-name",
        spec.model,
        "--host",
        settings.host,
        "--port",
        str(port),
        "--middleware",
        "serving.engine.boundary.Boundary",
        "--max-model-len",
        str(spec.context_tokens),
        "--tensor-parallel-size",
        str(settings.tensor_parallel),
        "--api-server-count",
        str(settings.api_servers),
        # One backend for all: with `auto` the first request's schema chooses for every later one (seen with 0.32).
        "--structured-outputs-config",
        '{"backend": "xgrammar"}',
        "--enable-prompt-tokens-details",  # the ledger counts cached prompt tokens
        "--disable-uvicorn-access-log",  # one line a request is the gateway's to write
    ]
    if is_cpu_build():
        # Compilation costs a minute at start and gains nothing for models this small.
        line += ["--dtype", "bfloat16", "--enforce-eager", "--gpu-memory-utilization", str(settings.memory_share)]
    if spec.tool_parser:
        # Without the strict level only tools marked strict get arguments that fit their schema (seen with 0.32).
        line += [
            "--enable-auto-tool-choice",
            "--tool-call-parser",
            spec.tool_parser,
            "--tool-strict-level",
            "parameter",
        ]
    if spec.reasoning_parser:
        line += ["--reasoning-parser", spec.reasoning_parser]
    if spec.task is Task.EMBED:
        line += ["--runner", "pooling"]
    return line


def environment(spec: EngineSpec, tree: str, scratch: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """The engine's environment: offline, silent towards its makers, and marked as a member of `tree`."""
    result = dict(inherited) | {
        processes.TREE_VARIABLE: tree,
        processes.TITLES_KEEP_ENVIRONMENT: "1",
        SECRET_FILE_VARIABLE: spec.secret_file,
        "TMPDIR": str(scratch),
        "VLLM_RPC_BASE_PATH": str(scratch),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if spec.reasoning_parser == "openai_gptoss":
        result[MARKERS_VARIABLE] = "1"
    if is_cpu_build():
        threads = max(1, (os.cpu_count() or 1) // spec.settings.tensor_parallel)
        result |= {
            # Eager mode compiles a few sampling functions all the same: the first request for log probabilities then
            # stalls the engine for 18 s, and kills it on a machine without a C++ compiler (seen with 0.32).
            "TORCH_COMPILE_DISABLE": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(spec.settings.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
            # Spinning threads take the processor from the gateway and from each other on a small machine.
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_vllm_alias(spec)), inherited.get("PYTHONPATH")))),
        }
    return result | dict(spec.environment)


def is_cpu_build() -> bool:
    """Is the installed vLLM the CPU build, which comes as a distribution of its own?"""
    return _version("vllm") is None and _version("vllm-cpu") is not None


def _vllm_alias(spec: EngineSpec) -> Path:
    """A folder that makes the CPU build known as `vllm`, version `+cpu`.

    vLLM's command line asks for the version of a distribution called `vllm`, and infers the CPU platform from that
    suffix; the CPU build is called `vllm-cpu` (seen with 0.32.0).
    """
    version = f"{_version('vllm-cpu')}+cpu"
    folder = Path(spec.log_folder) / "vllm-alias"
    metadata = folder / f"vllm-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True, exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return folder


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
