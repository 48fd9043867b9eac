"""Deployments: the two Serve deployments of a cell, without the options that change while it runs.

`app` runs them on this machine's Ray; `cluster` builds them for Serve's declarative configuration.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray import serve
from ray.serve import Deployment

from serving.engine import placement
from serving.engine.command import EngineSpec
from serving.engine.directory import Directory
from serving.engine.replica import Replica

DIRECTORY_APP = "directory"
#: Seconds that Serve waits beyond a replica's drain time-out, so that the drain's own limit applies first.
DRAIN_MARGIN_S = 30.0
#: Seconds between Serve's health checks; it replaces a replica after three failures in a row.
_HEALTH_PERIOD_S = 1.0
_HEALTH_TIMEOUT_S = 10.0


def directory(labels: Mapping[str, str]) -> Deployment:
    """The cell's directory, on a node with these Ray labels."""
    return serve.deployment(
        name="Directory",
        num_replicas=1,
        max_ongoing_requests=1000,
        health_check_period_s=_HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=1,
        ray_actor_options={"num_cpus": 0, "label_selector": dict(labels)},
    )(Directory)


def replica(spec: EngineSpec, labels: Mapping[str, str] = placement.NO_LABELS) -> Deployment:
    """Replicas of one model, on nodes with these Ray labels; one engine unless an option says otherwise."""
    return serve.deployment(
        name="Replica",
        num_replicas=placement.serve_replicas(spec, 1),
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=spec.settings.drain_timeout_s + DRAIN_MARGIN_S,
        **placement.options(spec, labels),
    )(Replica)
