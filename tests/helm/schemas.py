"""KubeRay's own schema of a RayService, with unknown fields forbidden. Shared by tests/helm and tests/cluster."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from tests.helm.cells import CRDS, Object


def kuberay_problems(service: Object) -> list[str]:
    """What KubeRay does not know or would not take in a RayService."""
    # Metadata is Kubernetes' own; the definition does not list its fields.
    errors = _kuberay().iter_errors(service | {"metadata": {}})
    return [f"{'.'.join(map(str, it.absolute_path))}: {it.message}" for it in errors]


@cache
def _kuberay() -> Draft7Validator:
    path = CRDS / "ray.io_rayservices.yaml"
    if not path.exists():
        pytest.fail(f"KubeRay's definitions are not at {CRDS}: name their folder in KUBERAY_CRDS.")
    versions = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = (it["schema"]["openAPIV3Schema"] for it in versions if it["name"] == "v1")
    return Draft7Validator(_closed(schema))


def _closed(schema: Any) -> Any:
    """The schema with fields it does not list forbidden, as the API server would drop them without a word."""
    if isinstance(schema, list):
        return [_closed(it) for it in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    return result
