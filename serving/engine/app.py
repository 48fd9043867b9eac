"""App: the engine plane's composition root. Starts Ray here if asked to, and puts the Serve applications on it.

One application per model and one for the directory: an application's version covers all of its deployments, so
a change to one model must not restart another.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

import ray
from ray import serve
from ray._private import parameter, services
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from serving import secret
from serving.config import Settings
from serving.engine import command, deployments, placement
from serving.engine.autoscale import Bounds
from serving.engine.command import EngineSpec
from serving.engine.deployments import DIRECTORY_APP
from serving.engine.engine import free_port
from serving.engine.specs import CellSettings, Deployment
from serving.errors import Refusal
from serving.wire import DIRECTORY_ROUTE

RAY_TOKEN_FILE = "ray.token"  # noqa: S105 A file's name.
#: Environment of Serve's controller, read at its start.
SERVE_ENVIRONMENT = {
    # Fill one node before the next, so that a large engine finds a whole node.
    "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY": "1",
    # Never give up on a deployment (the other half of placement.RETRIES_WITHOUT_END).
    "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": str(placement.RETRIES_WITHOUT_END),
    # Seconds between two looks of Serve's controller at everything it runs: half a health check's period (CELL-25).
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Milliseconds between two updates of Serve's metrics: as often as Ray exports them. Every process of Serve reads it.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "10000",
}
#: The same, of a Ray on this machine alone, and what an idle laptop does without (CELL-25).
_LOCAL_ENVIRONMENT = {
    # Serve looks at its proxy once in 10 s, and starts a dead one only then.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # Milliseconds that Ray's node waits for its agents' first answer; 30 s are too few on a machine that is busy.
    "RAY_agent_register_timeout_ms": "180000",
    # Nothing scrapes Ray's and Serve's own metrics here.
    "RAY_enable_metrics_collection": "0",
    # Nor does anything ask for the history of Ray's tasks.
    "RAY_task_events_report_interval_ms": "0",
    # Off, as in the chart: it would kill the smallest of Ray's workers for the memory of the engine.
    "RAY_memory_monitor_refresh_ms": "0",
    # Milliseconds between two looks of Ray's node: at its resources, its objects, its idle workers, its disk. One node
    # has no other to tell of the first, and no token passes through the second.
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_object_manager_timer_freq_ms": "1000",
    "RAY_kill_idle_workers_interval_ms": "1000",
    "RAY_local_fs_monitor_interval_ms": "10000",
    # And between two statistics of every process, for a dashboard that is not there.
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
}
#: Ray's daemons that have nothing to do on one machine: one prints workers' logs at drivers, one asks for more nodes.
_UNUSED_DAEMONS = {"include_log_monitor": False, "no_monitor": True}
#: Ports of Ray's agents. Its node waits 15 s for an agent that has none given to choose one, and then aborts (CELL-24).
_AGENT_PORTS = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
#: As Ray has them: they are replaced at each start.
_RAY_PARAMETERS, _RAYLET = parameter.RayParams, services.RAYLET_EXECUTABLE
#: Bytes of Ray's object store: no token passes through Ray, so its smallest size will do.
_OBJECT_STORE_BYTES = 80 * 1024 * 1024


def _give_parameters(folder: Path) -> None:
    """Have `ray.init` give Ray's agents the ports that it takes no arguments for, have Ray's node know them all, and
    leave unused daemons out."""
    ports = {name: free_port("127.0.0.1") for name in _AGENT_PORTS}
    parameter.RayParams = partial(_RAY_PARAMETERS, **ports, **_UNUSED_DAEMONS)
    node = folder.parent / "raylet"
    # The node takes this option, and Ray passes it on in no way.
    listen_port = ports["dashboard_agent_listen_port"]
    node.write_text(f'#!/bin/sh\nexec "{_RAYLET}" --dashboard_agent_listen_port={listen_port} "$@"\n')
    node.chmod(0o700)
    services.RAYLET_EXECUTABLE = str(node)


def start_local_ray(serve_port: int, home: Path, folder: Path) -> None:
    """Start a local Ray that this process owns, all of it on loopback, with its files in `folder`.

    Serve's replicas still listen on every interface, whatever their settings, so token authentication is on (CELL-7).
    """
    os.environ.pop("RAY_AUTH_MODE", None)  # unset means token to 2.60, and only unset is read after its import
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(secret.create_if_absent(home, RAY_TOKEN_FILE))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ |= SERVE_ENVIRONMENT | _LOCAL_ENVIRONMENT
    _give_parameters(folder)
    try:
        ray.init(
            address="local",
            _node_ip_address="127.0.0.1",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
            _metrics_export_port=free_port("127.0.0.1"),
            _temp_dir=str(folder),
        )
    except Exception as error:
        logging.getLogger("serving.engine").debug("Ray did not start", exc_info=error)
        raise Refusal("Ray did not start on this machine in time: is it very busy? Try again in a moment.") from None
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": serve_port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # this command prints its own progress


def stop_serve() -> None:
    """Stop every Serve application, awaiting their drains."""
    serve.shutdown()


def stop_local_ray() -> None:
    """Stop Ray's own processes."""
    ray.shutdown()


def deploy(cell: str, directory: str, settings: Settings, models: Sequence[Deployment]) -> None:
    """Make the running Ray serve exactly these models; a model whose version is unchanged keeps running.

    Returns when the directory answers at the base URL `directory`; replicas report their own progress there.
    """
    fleet = tuple(it.wanted for it in models)
    run_directory(cell, settings, CellSettings.of(settings, fleet))
    for it in models:
        run_model(it, directory)
    kept = {DIRECTORY_APP, *(_app_name(it.spec.model) for it in models)}
    for name in serve.status().applications.keys() - kept:
        serve.delete(name, _blocking=False)


def run_directory(cell: str, settings: Settings, wanted: CellSettings) -> None:
    """Deploy the cell's directory, or update the settings of the running one, and wait until it answers."""
    described = deployments.directory(wanted.engine.directory_labels).options(
        user_config=wanted.model_dump(mode="json"),  # Serve takes only a mapping
        version=hashlib.sha256(f"{cell} {settings.secret_file}".encode()).hexdigest(),
        _internal=True,
    )
    serve.run(described.bind(cell, str(settings.secret_file)), name=DIRECTORY_APP, route_prefix=DIRECTORY_ROUTE)


def run_model(it: Deployment, directory: str) -> None:
    """Deploy one model's application; returns at once.

    Where its bounds differ, Serve's autoscaling hook reads the wanted number from the directory at base URL
    `directory`. Run again with other bounds, adapters or default output tokens it restarts nothing: they are no part of
    the version.
    """
    spec = it.spec
    described = deployments.replica(spec).options(
        **_fleet(spec, it.plan.bounds, directory),
        graceful_shutdown_timeout_s=spec.settings.drain_timeout_s + deployments.DRAIN_MARGIN_S,
        user_config=it.live.model_dump(mode="json"),
        # Serve gives each `run` a new version, and so restarts what only changed in number (CELL-9).
        version=command.version(spec),
        _internal=True,
    )
    target = serve.RunTarget(described.bind(spec, DIRECTORY_APP), name=_app_name(spec.model), route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)


def _app_name(model: str) -> str:
    return f"model-{model}"


class Fleet(TypedDict, total=False):
    """Keyword arguments of `serve.deployment` that say how many."""

    num_replicas: int
    autoscaling_config: AutoscalingConfig


def _fleet(spec: EngineSpec, bounds: Bounds, directory: str) -> Fleet:
    """A fixed number, or what the directory says within the bounds, without Serve's own delays."""
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
