"""The fixtures themselves: KubeRay's objects are ones that its own definition takes, where that is at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from serving.operate import checks
from serving.operate.checks import Answer
from serving.operate.objects import CustomResourceDefinition
from tests.operate import fixtures

#: Folder of KubeRay 1.7.0's definitions (ray.io_rayservices.yaml), which are not part of this project.
DEFINITIONS = Path(os.environ.get("KUBERAY_CRDS", Path(__file__).parents[3] / "shared" / "data" / "kuberay"))


@pytest.fixture(scope="module")
def definition() -> dict[str, Any]:
    path = DEFINITIONS / "ray.io_rayservices.yaml"
    if not path.exists():
        pytest.fail(f"KubeRay's definitions are not in {DEFINITIONS}: name their folder with KUBERAY_CRDS")
    content: dict[str, Any] = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    return content


def closed(schema: Any) -> Any:
    """A definition's schema with unknown fields forbidden, where it lists its fields and preserves no others."""
    if isinstance(schema, list):
        return [closed(it) for it in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    is_open = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
    if isinstance(made.get("properties"), dict) and made.get("type") == "object" and not is_open:
        made["additionalProperties"] = False
    if made.pop("x-kubernetes-int-or-string", False):
        made["type"] = ["integer", "string"]
    return made


@pytest.mark.parametrize(
    "service",
    [
        fixtures.ray_service(),
        fixtures.ray_service(has_fault_tolerance=True, has_tls=True, failing="it broke"),
        fixtures.ray_service("b", paused=True, state="Initializing"),
    ],
)
def test_cells_are_ones_kuberay_takes(definition: dict[str, Any], service: dict[str, Any]) -> None:
    """Each RayService of these tests is strictly valid by KubeRay 1.7.0's own schema, its status included."""
    (version,) = (it for it in definition["spec"]["versions"] if it["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {}
    jsonschema.Draft7Validator(schema).validate(service)


def test_kuberays_own_definition_has_what_is_looked_for(definition: dict[str, Any]) -> None:
    """The fields that preflight asks for are in 1.7.0's definition, so that it says yes to it."""
    real = msgspec.convert(definition, CustomResourceDefinition)
    assert checks.rayservice(real).answer is Answer.YES
