"""Cluster: a cell's applications, as Serve's declarative configuration refers to them (`import_path`, `args`).

Serve hashes `args` into an application's version, so they hold only what an engine is started with; fleet size,
adapters and time limits stand under the configuration's `deployments`, and change without a restart.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray.serve import Application

from serving import catalog
from serving.catalog import Model
from serving.config import EngineSettings, ModelSettings, PlaneTls, Settings
from serving.engine import deployments
from serving.engine.checkpoints import store as checkpoints
from serving.engine.specs import engine_spec

#: KubeRay's name for the Ray cluster a pod belongs to: two stand behind one address while one replaces the other.
RAY_CLUSTER_VARIABLE = "RAY_CLUSTER_NAME"


class _Arguments(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DirectoryArguments(_Arguments):
    cell: str
    """The cell's name in the chart's values."""
    secret_file: Path
    """The plane secret."""
    labels: dict[str, str] = {}
    """Ray labels of the nodes that may hold the directory."""


class ModelArguments(_Arguments):
    model: ModelSettings
    """Only `specs.START_OF_MODEL` of it counts."""
    own_model: Model | None = None
    """Its description, where the catalogue has no entry."""
    engine: EngineSettings
    """Only `specs.START_OF_ENGINE` of it counts."""
    home: Path
    """Folder of models, caches and logs in the engine's pod."""
    secret_file: Path
    """The plane secret."""
    labels: dict[str, str] = {}
    """Ray labels of the nodes that may hold engines."""
    plane_tls: PlaneTls | None = None
    """Certificate of the engines; unset for plain HTTP."""


def directory(args: dict[str, Any]) -> Application:
    """The directory of the Ray cluster that builds it; `args` are DirectoryArguments."""
    arguments = DirectoryArguments.model_validate(args)
    cell = "/".join(filter(None, (arguments.cell, os.environ.get(RAY_CLUSTER_VARIABLE))))
    return deployments.directory(arguments.labels).bind(cell, str(arguments.secret_file))


def model(args: dict[str, Any]) -> Application:
    """One model's replicas; `args` are ModelArguments.

    Raises Refusal when they cannot work, which Serve shows as the application's status.
    """
    arguments = ModelArguments.model_validate(args)
    own = (arguments.own_model,) if arguments.own_model else ()
    described = catalog.find(arguments.model.name, own)
    settings = Settings(
        home=arguments.home,
        plane_secret_file=arguments.secret_file,
        plane_tls=arguments.plane_tls,
        engine=arguments.engine,
        models=(arguments.model,),
        own_models=own,
    )
    folder = checkpoints.folder_of(described, settings.home)
    spec = engine_spec(described, arguments.model, folder, settings, settings.secret_file)
    return deployments.replica(spec, arguments.labels).bind(spec, deployments.DIRECTORY_APP)
