"""App: the engine plane's composition root. Starts Ray here if asked to, and puts the Serve applications on it.

One application per model and one for the directory: an application's version covers all of its deployments, so
changing one model must not be able to restart another.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

import msgspec
import ray
from ray import serve

from serving import secret
from serving.budget import refuse, refuse_on_cpu, refuse_room
from serving.catalog import GPUS, Model, Profile
from serving.config import AdapterSettings, EngineSettings, ModelSettings, Settings
from serving.engine import command, placement
from serving.engine.command import EngineSpec, Parallel
from serving.engine.directory import Directory
from serving.engine.flags import room_flags, tuning_flags
from serving.engine.replica import Replica
from serving.errors import Refusal
from serving.wire import DIRECTORY_ROUTE

DIRECTORY_APP = "directory"
RAY_TOKEN_FILE = "ray.token"  # noqa: S105 A file's name.
#: Seconds between Serve's health checks; it replaces a replica after three failures in a row.
_HEALTH_PERIOD_S = 1.0
_HEALTH_TIMEOUT_S = 10.0
#: What Serve's controller reads at its start. Fill one node before the next, so that a large engine finds a whole one;
#: and never give a deployment up (see placement.RETRIES_WITHOUT_END, of which this is the other half).
SERVE_ENVIRONMENT = {
    "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY": "1",
    "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": str(placement.RETRIES_WITHOUT_END),
}
#: An engine on the CPU, in a profile's words.
_ON_CPU = Profile(name="cpu", gpu="none", reason="No GPU is asked for.", source="the settings")
#: Bytes of Ray's object store: no token passes through Ray, so its smallest size will do.
_OBJECT_STORE_BYTES = 80 * 1024 * 1024


def start_local_ray(serve_port: int, home: Path) -> None:
    """Start a Ray of our own in this process's care, with Serve's proxy on a loopback port.

    Some of Ray's servers listen on every interface whatever they are told, so its token authentication is on.
    """
    os.environ.pop("RAY_AUTH_MODE", None)  # unset means token to 2.60, and only unset is read after its import
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(secret.create_if_absent(home, RAY_TOKEN_FILE))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ |= SERVE_ENVIRONMENT
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=str(_ray_folder()),
    )
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": serve_port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # this command tells its own progress


def stop_local_ray() -> None:
    """Stop every Serve application, awaiting their drains, then Ray; nothing of it stays on disk."""
    session = _ray_folder() / ray.get_runtime_context().get_session_name()
    serve.shutdown()
    ray.shutdown()
    shutil.rmtree(session, ignore_errors=True)


def _ray_folder() -> Path:
    """Short, because socket paths below it must stay under 108 bytes; per user, because Ray makes it private."""
    return Path(tempfile.gettempdir()) / f"serving-ray-{os.getuid()}"


def run_directory(cell: str, secret_file: Path, settings: EngineSettings) -> None:
    """Deploy the cell's directory and wait until it answers."""
    deployment = serve.deployment(
        name="Directory",
        num_replicas=1,
        max_ongoing_requests=1000,
        health_check_period_s=_HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=1,
        ray_actor_options={"num_cpus": 0, "label_selector": settings.directory_labels},
    )(Directory)
    serve.run(deployment.bind(cell, str(secret_file)), name=DIRECTORY_APP, route_prefix=DIRECTORY_ROUTE)


def run_model(spec: EngineSpec, engines: int = 1, adapters: tuple[AdapterSettings, ...] = ()) -> None:
    """Deploy one model's application; returns at once, its replicas report their own progress.

    Run again with other `adapters` it restarts nothing: they are no part of the version.
    """
    deployment = serve.deployment(
        name="Replica",
        num_replicas=placement.serve_replicas(spec, engines),
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=spec.settings.drain_timeout_s + 30,  # the drain's own limit strikes first
        user_config=[adapter.model_dump() for adapter in adapters],
        **placement.options(spec),
    )(Replica)
    # Serve gives each `run` a new version, and so restarts what only changed in number (seen with 2.60).
    versioned = deployment.options(version=command.version(spec), _internal=True)
    target = serve.RunTarget(
        versioned.bind(spec, DIRECTORY_APP, adapters), name=f"model-{spec.model}", route_prefix=None
    )
    serve.run_many([target], wait_for_applications_running=False)


def engine_spec(
    model: Model, wanted: ModelSettings, checkpoint: Path, settings: Settings, secret_file: Path
) -> EngineSpec:
    """The engine that serves `model` from `checkpoint`, as its settings want it; raises Refusal when it cannot work."""
    common = EngineSpec(
        model=model.name,
        checkpoint=str(checkpoint),
        task=model.task,
        context_tokens=model.context_tokens,
        settings=settings.engine,
        secret_file=str(secret_file),
        log_folder=str(settings.home / "logs"),
        cache_folder=str(settings.home / "cache"),
        parallel=Parallel(wanted.tensor or 1, wanted.pipeline or 1, wanted.data or 1, bool(wanted.expert)),
        tool_parser=model.tool_parser,
        reasoning_parser=model.reasoning_parser,
        environment=tuple(sorted(model.environment.items())),
    )
    chosen, limited = _profile(model, wanted, settings.engine)
    if wanted.profile is None:
        return msgspec.structs.replace(
            common, lora=wanted.lora, flags=tuple(room_flags(wanted.lora)) if wanted.lora else ()
        )
    return msgspec.structs.replace(
        common,
        lora=limited.lora if chosen.lora else None,
        context_tokens=chosen.context_tokens or model.context_tokens,
        parallel=Parallel(chosen.tensor, chosen.pipeline, chosen.data, chosen.expert),
        nodes=chosen.nodes,
        gpus_per_node=chosen.pod_gpus,
        gpu_type=GPUS[chosen.gpu].ray_label,
        flags=tuple(tuning_flags(limited, chosen)),
    )


def _profile(model: Model, wanted: ModelSettings, settings: EngineSettings) -> tuple[Profile, Model]:
    """The profile with what the settings say in its place, and the model with the room they want; raises Refusal."""
    on_cpu = wanted.profile is None
    chosen = (_ON_CPU if on_cpu else model.profile(wanted.profile, wanted.gpu)).override(
        wanted.tensor, wanted.pipeline, wanted.data, wanted.expert, settings.gpus_per_node
    )
    limited = model
    if wanted.lora:
        chosen, limited = chosen.model_copy(update={"lora": True}), model.model_copy(update={"lora": wanted.lora})
    if wanted.adapters and not chosen.lora:
        raise Refusal(f"{model.name} is given adapters and no room for them: set its `lora`, or take none.")
    if on_cpu and model.architecture:  # a model of the user's own may come without
        refuse_on_cpu(model, chosen)
    if chosen.lora and limited.lora:
        refuse_room(model, limited.lora, settings.api_servers, 1 if on_cpu else chosen.nodes)
    if not on_cpu:
        refuse(limited, chosen, settings.gpus_per_node)
    return chosen, limited
