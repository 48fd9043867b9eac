"""App: the engine plane's composition root. Starts Ray here if asked to, and puts the Serve applications on it.

One application per model and one for the directory: an application's version covers all of its deployments, so
changing one model must not be able to restart another.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import msgspec
import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from serving import secret
from serving.budget import estimate, gpu_of, refuse, refuse_on_cpu, refuse_room
from serving.catalog import Model, Profile
from serving.config import AdapterSettings, EngineSettings, ModelSettings, Settings
from serving.engine import command, placement, scaling
from serving.engine.autoscale import Bounds
from serving.engine.command import EngineSpec, Parallel
from serving.engine.directory import Directory
from serving.engine.flags import room_flags, tuning_flags
from serving.engine.replica import LiveSettings, Replica
from serving.engine.scaling import ModelPlan, Plans
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
#: What the settings' knobs change where no profile is chosen; only its ranks mean anything on a CPU.
_ON_CPU = Profile(name="cpu", gpu="none", reason="No GPU.", source="vLLM's own defaults")
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
    try:
        ray.init(
            address="local",
            _node_ip_address="127.0.0.1",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(_ray_folder()),
        )
    except Exception as error:
        logging.getLogger("serving.engine").debug("Ray did not start", exc_info=error)
        raise Refusal("Ray did not start on this machine in time: is it very busy? Try again in a moment.") from None
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


class Deployment(NamedTuple):
    """One model as the engine plane is given it."""

    spec: EngineSpec
    plan: ModelPlan
    adapters: tuple[AdapterSettings, ...] = ()


def deployment_of(model: Model, wanted: ModelSettings, settings: Settings, checkpoint: Path) -> Deployment:
    """What `settings` make of `model`; starts and fetches nothing. Raises Refusal when it cannot work."""
    spec = engine_spec(model, wanted, checkpoint, settings, settings.home / secret.FILE_NAME)
    return Deployment(spec, model_plan(model, wanted, spec), wanted.adapters)


def deploy(cell: str, directory: str, settings: Settings, deployments: Sequence[Deployment]) -> None:
    """Make the running Ray serve these models and no other; whoever has not changed goes on undisturbed.

    Returns when the directory answers at the base URL `directory`; replicas report their own progress there.
    """
    run_directory(cell, settings, Plans(tuple(it.plan for it in deployments), settings.engine.nodes_may_grow))
    for it in deployments:
        run_model(it, directory)
    kept = {DIRECTORY_APP, *(_app_name(it.spec.model) for it in deployments)}
    for name in serve.status().applications.keys() - kept:
        serve.delete(name, _blocking=False)


def run_directory(cell: str, settings: Settings, plans: Plans) -> None:
    """Deploy the cell's directory, or hand new plans to the one that runs, and wait until it answers."""
    secret_file = settings.home / secret.FILE_NAME
    deployment = serve.deployment(
        name="Directory",
        num_replicas=1,
        max_ongoing_requests=1000,
        health_check_period_s=_HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=1,
        user_config=scaling.to_plain(plans),  # Serve takes nothing but a mapping
        ray_actor_options={"num_cpus": 0, "label_selector": settings.engine.directory_labels},
    )(Directory)
    versioned = deployment.options(version=hashlib.sha256(f"{cell} {secret_file}".encode()).hexdigest(), _internal=True)
    serve.run(versioned.bind(cell, str(secret_file)), name=DIRECTORY_APP, route_prefix=DIRECTORY_ROUTE)


def run_model(it: Deployment, directory: str) -> None:
    """Deploy one model's application; returns at once.

    Where its bounds differ Serve's autoscaling asks the directory, at the base URL `directory`, how many are wanted.
    Run again with other bounds or adapters it restarts nothing: they are no part of the version.
    """
    spec = it.spec
    deployment = serve.deployment(
        name="Replica",
        **_fleet(spec, it.plan.bounds, directory),
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=spec.settings.drain_timeout_s + 30,  # the drain's own limit strikes first
        user_config=LiveSettings(engine=spec.settings, adapters=it.adapters).model_dump(mode="json"),
        **placement.options(spec),
    )(Replica)
    # Serve gives each `run` a new version, and so restarts what only changed in number (seen with 2.60).
    versioned = deployment.options(version=command.version(spec), _internal=True)
    bound = versioned.bind(spec, DIRECTORY_APP, it.adapters)
    target = serve.RunTarget(bound, name=_app_name(spec.model), route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)


def _app_name(model: str) -> str:
    return f"model-{model}"


class Fleet(TypedDict, total=False):
    """Keyword arguments of `serve.deployment` that say how many."""

    num_replicas: int
    autoscaling_config: AutoscalingConfig


def _fleet(spec: EngineSpec, bounds: Bounds, directory: str) -> Fleet:
    """So many, or as many as the directory says within the bounds, without a delay of Serve's own."""
    lowest, most = (placement.serve_replicas(spec, engines) for engines in (bounds.min_replicas, bounds.max_replicas))
    if lowest == most:
        return Fleet(num_replicas=most)
    hook = {
        "model": spec.model,
        "members": spec.nodes,
        "directory": directory,
        "secret_file": spec.secret_file,
    }
    return Fleet(
        autoscaling_config=AutoscalingConfig(
            min_replicas=lowest,
            max_replicas=most,
            upscale_delay_s=0,
            downscale_delay_s=0,
            downscale_to_zero_delay_s=0,
            policy=AutoscalingPolicy(policy_function="serving.engine.hook:Wanted", policy_kwargs=hook),
        )
    )


def model_plan(model: Model, wanted: ModelSettings, spec: EngineSpec) -> ModelPlan:
    """What the directory has to know to scale `model`; raises Refusal where nothing says what one engine of it does."""
    if wanted.profile is None:
        knee = model.cpu_knee
    else:
        chosen, limited = _profile(model, wanted, spec.settings)
        knee = estimate(limited, chosen) if model.architecture else None
    return scaling.plan(model, wanted, spec, knee)


def engine_spec(
    model: Model, wanted: ModelSettings, checkpoint: Path, settings: Settings, secret_file: Path
) -> EngineSpec:
    """The engine that serves `model` from `checkpoint`, as its settings want it; raises Refusal when it cannot work.

    Neither the checkpoint nor the secret need be there yet: whoever is refused has fetched nothing.
    """
    chosen, limited = _profile(model, wanted, settings.engine)
    common = EngineSpec(
        model=model.name,
        checkpoint=str(checkpoint),
        task=model.task,
        context_tokens=chosen.context_tokens or model.context_tokens,
        settings=settings.engine.model_copy(update={"api_servers": chosen.api_servers or settings.engine.api_servers}),
        secret_file=str(secret_file),
        log_folder=str(settings.home / "logs"),
        cache_folder=str(settings.home / "cache"),
        parallel=Parallel(chosen.tensor, chosen.pipeline, chosen.data, chosen.expert),
        tool_parser=model.tool_parser,
        reasoning_parser=model.reasoning_parser,
        environment=tuple(sorted(model.environment.items())),
        tokenizer=model.tokenizer,
        checksums=tuple(sorted(model.checksums.items())),
        lora=limited.lora if chosen.lora else None,
        flags=tuple(room_flags(wanted.lora)) if wanted.lora else (),
    )
    return common if wanted.profile is None else _on_gpus(common, limited, chosen)


def _on_gpus(spec: EngineSpec, model: Model, chosen: Profile) -> EngineSpec:
    return msgspec.structs.replace(
        spec,
        nodes=chosen.nodes,
        gpus_per_node=chosen.pod_gpus,
        gpu_type=gpu_of(chosen).ray_label,
        flags=tuple(tuning_flags(model, chosen)),
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
    is_known = model.architecture is not None  # what a user's own model does not say of its shape, vLLM finds out
    if is_known and on_cpu:
        refuse_on_cpu(model, chosen)
    if chosen.lora and limited.lora:
        refuse_room(model, limited.lora, chosen.api_servers or settings.api_servers, 1 if on_cpu else chosen.nodes)
    if is_known and not on_cpu:
        refuse(limited, chosen, settings.gpus_per_node)
    return chosen, limited
