"""Command: the one launcher. Builds the command line and environment that start a vLLM server, on CPU and GPU alike."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from serving.catalog import Dtype, LoraLimits, Sanity
from serving.config import EngineSettings, PlaneTls
from serving.engine import boundary, exposition, grammars, processes
from serving.engine.boundary import PROMPTS_VARIABLE, SECRET_FILE_VARIABLE
from serving.wire import STOP_STRINGS_MAX, Task

_STEP_FLAG = "--max-num-batched-tokens"
#: vLLM's default on a CPU, times its ranks (0.32, engine/arg_utils.py).
_CPU_STEP_TOKENS = 2048


class Parallel(msgspec.Struct, frozen=True):
    """How one engine's work is divided; the four knobs are independent."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    #: Experts are spread over the ranks instead of each being cut into as many pieces.
    expert: bool = False

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.data


class Member(msgspec.Struct, frozen=True):
    """One node's share of an engine; an engine on one node has one member."""

    rank: int = 0
    #: Address of the first member, where the members rendezvous.
    head: str = "127.0.0.1"
    #: A TCP port there.
    port: int = 0


ONLY_MEMBER = Member()


class EngineSpec(msgspec.Struct, frozen=True):
    """Everything that one engine is started with; plain data, so that Ray can carry it."""

    model: str
    checkpoint: str
    task: Task
    context_tokens: int
    settings: EngineSettings
    secret_file: str
    log_folder: str
    #: Folder of compiled kernels and graphs, kept across restarts; a volume in a cluster.
    cache_folder: str
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    parallel: Parallel = Parallel()
    #: Nodes that one engine spans, and GPUs on each; 0 GPUs on the CPU.
    nodes: int = 1
    gpus_per_node: int = 0
    #: GiB of its node's /dev/shm for KV that no longer fits its GPUs.
    host_kv_gib: float = 0.0
    #: The only GPU type it may run on, as Ray labels nodes; None for any.
    gpu_type: str | None = None
    #: vLLM flags that the model's profile adds.
    flags: tuple[str, ...] = ()
    #: Extra environment that a checkpoint needs.
    environment: tuple[tuple[str, str], ...] = ()
    #: What the CPU build computes in; a GPU computes in what the checkpoint is stored in.
    cpu_dtype: Dtype = "bfloat16"
    #: A tokenizer that the checkpoint does not carry.
    tokenizer: str | None = None
    #: The folder of the checkpoint that guesses tokens ahead; None where none does.
    draft: str | None = None
    #: SHA-256 of the checkpoint's files, verified before their first load.
    checksums: tuple[tuple[str, str], ...] = ()
    #: The certificate of its HTTP server; None for plain HTTP.
    tls: PlaneTls | None = None
    #: Room for adapters, which `flags` reserves in vLLM; the adapters themselves change live.
    lora: LoraLimits | None = None
    #: What it must make of fixed texts before it serves; None where it is not asked.
    sanity: Sanity | None = None

    @property
    def speaks_harmony(self) -> bool:
        return self.reasoning_parser == "openai_gptoss"

    @property
    def step_tokens(self) -> int:
        """Tokens that one step of a core computes at most: its profile's, or vLLM's own limit on a CPU."""
        if _STEP_FLAG in self.flags:
            return int(self.flags[self.flags.index(_STEP_FLAG) + 1])
        return _CPU_STEP_TOKENS * self.parallel.ranks


#: Flag or variable of vLLM → the setting behind it, where the names differ.
_SETTINGS = {
    "--tensor-parallel-size": "tensor",
    "--pipeline-parallel-size": "pipeline",
    "--data-parallel-size": "data",
    "--enable-expert-parallel": "expert",
    "--max-model-len": "context_tokens",
    "--api-server-count": "api_servers",
    "--tool-call-parser": "tool_parser",
    "VLLM_CPU_KVCACHE_SPACE": "kv_cache_gib",
}
#: What the absence of a setting means, where it is neither "off" nor "unset".
_ABSENT = {"data": "1"}


def version(spec: EngineSpec) -> str:
    """A digest of what an engine is started with: Serve restarts a model's engines when it changes, and only then.

    Settings that no engine is started with (`heartbeat_s`, `drain_timeout_s`, limits of a start) are not part of it.
    Serve passes them to the running replicas (`Replica.reconfigure`); a setting that is read only during a start takes
    effect at the next one.
    """
    return hashlib.sha256(msgspec.json.encode(sorted(start_of(spec).items()))).hexdigest()[:16]


def differences(before: EngineSpec, after: EngineSpec) -> list[str]:
    """How two specs differ (`tensor 2 -> 4`); empty exactly when their versions are equal."""
    old, new = start_of(before), start_of(after)
    names = [name for name in new | old if old.get(name) != new.get(name)]
    return [f"{name} {_shown(name, old, new)} -> {_shown(name, new, old)}" for name in names]


def _shown(name: str, values: Mapping[str, str], others: Mapping[str, str]) -> str:
    absent = "off" if others.get(name) == "on" else _ABSENT.get(name, "unset")
    return values.get(name, absent)


def start_of(spec: EngineSpec) -> dict[str, str]:
    """Everything that an engine's start depends on, by the operator's name for it, or else by vLLM's.

    What differs from node to node (threads, the folders of one start) is left out.
    """
    names = _SETTINGS if spec.gpus_per_node else _SETTINGS | {"--gpu-memory-utilization": "memory_share"}
    entered = by_flag(_flags(spec, port=0, member=ONLY_MEMBER)) | _decided(spec)
    return {
        "program": " ".join(spec.settings.program) or "vllm",
        "checkpoint": spec.checkpoint,
        **{names.get(name, name.removeprefix("--").replace("-", "_")): value for name, value in entered.items()},
        "nodes": str(spec.nodes),
        "gpus_per_node": str(spec.gpus_per_node),
        "gpu_type": spec.gpu_type or "any",
        **{f"checksum of {name}": sha256 for name, sha256 in spec.checksums},  # another checksum means other weights
    }


def by_flag(line: Sequence[str]) -> dict[str, str]:
    """The words after each flag; a flag without any is on."""
    words, name = dict[str, list[str]](), ""
    for word in line:
        if word.startswith("--"):
            name = word
            words.setdefault(name, [])
        else:
            words[name].append(word)
    return {name: " ".join(values) or "on" for name, values in words.items()}


def arguments(spec: EngineSpec, port: int, member: Member = ONLY_MEMBER) -> list[str]:
    """vLLM's `serve` command line for one member of this engine; the first one listens on `port`."""
    program = spec.settings.program or (sys.executable, "-m", "vllm.entrypoints.cli.main")
    return [*program, "serve", spec.checkpoint, *_flags(spec, port, member)]


def _flags(spec: EngineSpec, port: int, member: Member) -> list[str]:
    return [
        *("--served-model-name", spec.model),
        *("--host", spec.settings.host or ""),
        *("--port", str(port)),
        *("--middleware", "serving.engine.boundary.Boundary"),
        *("--max-model-len", str(spec.context_tokens)),
        *_tls_flags(spec.tls),
        *_parallel_flags(spec, member),
        # One backend for all: with `auto` the first request's schema chooses for every later one (ENG-8).
        *("--structured-outputs-config", '{"backend": "xgrammar"}'),
        # Calls that wait in the engine go by the number that the gateway gives them (TEN-17).
        *("--scheduling-policy", "priority"),
        "--enable-prompt-tokens-details",  # the ledger records cached prompt tokens
        "--enable-scale-out",  # prompts are rendered for their count (MEM-14); the boundary closes what else it opens
        "--disable-uvicorn-access-log",  # the gateway writes the access log
        *_traces_flags(spec.settings.traces_endpoint),
        *_model_flags(spec),
        *spec.flags,
    ]


def _traces_flags(endpoint: str | None) -> list[str]:
    return ["--otlp-traces-endpoint", endpoint] if endpoint else []


def _tls_flags(tls: PlaneTls | None) -> list[str]:
    if tls is None:
        return []
    files = ("--ssl-certfile", str(tls.certificate_file), "--ssl-keyfile", str(tls.key_file))
    return [*files, "--enable-ssl-refresh"]  # a renewed certificate needs no restart


def _model_flags(spec: EngineSpec) -> list[str]:
    line: list[str] = []
    if not spec.gpus_per_node:
        # Compilation costs a minute at start and gains nothing for models this small.
        line += ["--dtype", spec.cpu_dtype, "--enforce-eager"]
        line += ["--gpu-memory-utilization", str(spec.settings.memory_share)]
    if spec.tokenizer:
        line += ["--tokenizer", spec.tokenizer]
    if spec.tool_parser:
        line += ["--enable-auto-tool-choice", "--tool-call-parser", spec.tool_parser]
        # Without the strict level, only tools marked strict get arguments that fit their schema (observed with 0.32).
        line += ["--tool-strict-level", "parameter"]
    if spec.reasoning_parser:
        line += ["--reasoning-parser", spec.reasoning_parser]
    if spec.task is Task.EMBED:
        line += ["--runner", "pooling"]
    return line


def _parallel_flags(spec: EngineSpec, member: Member) -> list[str]:
    parallel = spec.parallel
    line = ["--tensor-parallel-size", str(parallel.tensor), "--pipeline-parallel-size", str(parallel.pipeline)]
    if parallel.data > 1:
        line += ["--data-parallel-size", str(parallel.data)]
    if parallel.expert:
        line += ["--enable-expert-parallel"]
    if spec.nodes > 1:
        line += ["--nnodes", str(spec.nodes), "--node-rank", str(member.rank)]
        line += ["--master-addr", member.head, "--master-port", str(member.port)]
    # Only the first member has a front end.
    return line + (["--headless"] if member.rank else ["--api-server-count", str(spec.settings.api_servers)])


def environment(
    spec: EngineSpec, tree: str, scratch: Path, inherited: Mapping[str, str], replica_id: str = ""
) -> dict[str, str]:
    """The engine's environment: offline, without telemetry, and marked as a member of `tree`.

    The mark is its first variable. setproctitle finds a process's title by walking back from there, and names nothing
    when that variable was written to since the process began, as vLLM and Ray do with some. A process whose title is
    never found never joins (observed: one start in many, because a Ray worker's variables are in no order).
    """
    result = (
        {processes.TREE_VARIABLE: tree}
        | dict(inherited)
        | {
            processes.TREE_VARIABLE: tree,
            processes.TITLES_KEEP_ENVIRONMENT: "1",
            exposition.LABELS_VARIABLE: exposition.labels(spec.model, replica_id),
            "TMPDIR": str(scratch),
            "VLLM_RPC_BASE_PATH": str(scratch),
        }
    )
    if not spec.gpus_per_node:
        result["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // spec.parallel.ranks))
    result["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_found_by_vllm(spec)), inherited.get("PYTHONPATH"))))
    if spec.lora:
        result["VLLM_LORA_RESOLVER_CACHE_DIR"] = str(shelf_folder(scratch))
    return result | _decided(spec)


def _decided(spec: EngineSpec) -> dict[str, str]:
    """The part of an engine's environment that its spec decides, the same on every machine."""
    result = {
        SECRET_FILE_VARIABLE: spec.secret_file,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_MAX_STOP_STRINGS": str(STOP_STRINGS_MAX),
        "DO_NOT_TRACK": "1",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",  # as the gateway
        **_caches(Path(spec.cache_folder)),
    }
    if spec.lora:
        # Without it vLLM does not ask its resolver for an unknown model name.
        result["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if spec.task is Task.GENERATE:
        result[PROMPTS_VARIABLE] = boundary.HARMONY if spec.speaks_harmony else boundary.TEMPLATE
    if not spec.gpus_per_node:
        result |= {
            # Eager mode compiles a few sampling functions all the same: the first request for log probabilities then
            # stalls the engine for 18 s, and kills it on a machine without a C++ compiler (ENG-11).
            "TORCH_COMPILE_DISABLE": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(spec.settings.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # On a small machine, spinning threads take CPU time from the gateway and from each other.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    return result | dict(spec.environment)


def shelf_folder(scratch: Path) -> Path:
    """Where an engine finds its adapters; it must exist before the engine starts."""
    return scratch / "adapters"


def _caches(folder: Path) -> dict[str, str]:
    """Caches of vLLM, torch, Triton and FlashInfer: without them each start of a large model compiles for minutes."""
    return {
        "VLLM_CACHE_ROOT": str(folder / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "FLASHINFER_WORKSPACE_BASE": str(folder / "flashinfer"),
    }


def is_cpu_build() -> bool:
    """Is the installed vLLM the CPU build, which comes as a distribution of its own?"""
    return _version("vllm") is None and _version("vllm-cpu") is not None


def is_gpu_build() -> bool:
    """Is the installed vLLM the one for GPUs?"""
    return _version("vllm") is not None


def _found_by_vllm(spec: EngineSpec) -> Path:
    """A folder on the engine's path, with metadata of what vLLM looks for among installed distributions."""
    folder = Path(spec.log_folder) / "vllm-alias"
    grammars.write_plugin(folder)
    if is_cpu_build():
        write_alias(folder)
    return folder


def write_alias(folder: Path) -> None:
    """Present the CPU build as `vllm`, version `+cpu`.

    vLLM's command line looks up the version of a distribution called `vllm` and infers the CPU platform from that
    suffix; the CPU build's distribution is `vllm-cpu` (observed with 0.32.0).
    """
    version = f"{_version('vllm-cpu')}+cpu"
    metadata = folder / f"vllm-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True, exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
