"""Cells against what will read them: KubeRay 1.7's own schema, Kubernetes' own of a pod, Pod Security's "restricted"."""

from __future__ import annotations

import re
from collections.abc import Iterator

import kubernetes_validate
import pytest

from tests.helm.cells import CPU_DEMO, Cell, Object, cell, container, every_cell
from tests.helm.schemas import kuberay_problems

#: The oldest Kubernetes the chart takes, and the newest there are schemas for.
KUBERNETES = ("1.31", "1.37")
#: As Pod Security Standards "restricted" lists them.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SAFE_SYSCTLS = {"net.ipv4.ip_local_port_range"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every cell of every scenario and values file."""
    if "one" in metafunc.fixturenames:
        found = list(every_cell())
        metafunc.parametrize("one", [it for _, it in found], ids=[name for name, _ in found])


def test_kuberay_knows_every_field(one: Cell) -> None:
    """A RayService holds nothing that KubeRay 1.7 does not know, and everything of the type it wants."""
    assert kuberay_problems(one.service) == []


def test_kuberay_changes_nothing_when_it_writes_a_cell_back(one: Cell) -> None:
    """It does so once, for a finalizer; what it changed would be its own, and Helm 4 could not upgrade it again."""
    for name, group in one.groups.items():
        assert group["scaleStrategy"] == {}, name
    assert [it for it in _quantities(one.cluster) if not _is_kubernetes_own(it)] == []


def test_quantities_are_written_as_kubernetes_does() -> None:
    """Whatever way the values say them."""
    asked = {"requests": {"cpu": 1, "memory": "1024Mi"}, "limits": {"cpu": 2.5, "memory": "1048576Ki"}}
    other = {"requests": {"cpu": "0.25", "memory": "1536Mi"}, "limits": {"cpu": "1000m", "memory": "3Gi"}}

    found = cell(CPU_DEMO | {"head": {"resources": asked}, "directory": {"resources": other}}).templates

    assert container(found["head"])["resources"] == {
        "requests": {"cpu": "1", "memory": "1Gi"},
        "limits": {"cpu": "2500m", "memory": "1Gi"},
    }
    assert container(found["directory"])["resources"] == {
        "requests": {"cpu": "250m", "memory": "1536Mi"},
        "limits": {"cpu": "1", "memory": "3Gi"},
    }


def _quantities(node: object) -> Iterator[object]:
    """Of resources and of volumes, wherever they are."""
    if isinstance(node, dict):
        for kind in ("requests", "limits"):
            yield from (node.get(kind) or {}).values()
        if "sizeLimit" in node:
            yield node["sizeLimit"]
        node = list(node.values())
    for child in node if isinstance(node, list) else []:
        yield from _quantities(child)


def _is_kubernetes_own(quantity: object) -> bool:
    """Whether Kubernetes writes it like this: the largest unit that needs no fraction."""
    if not (isinstance(quantity, str) and (found := re.fullmatch(r"(\d+)(m|Ki|Mi|Gi|Ti|)", quantity))):
        return False
    step = {"m": 1000, "Ki": 1024, "Mi": 1024, "Gi": 1024}.get(found[2])
    return step is None or int(found[1]) % step != 0


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_pods_and_objects_are_kubernetes_own(one: Cell, kubernetes: str) -> None:
    """Each pod template makes a pod, and each other object passes, under Kubernetes' strict schemas."""
    for name, template in one.templates.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template["metadata"]}}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, kubernetes, strict=True)
    for it in one.objects:
        if it["kind"] != "RayService":
            kubernetes_validate.validate(it, kubernetes, strict=True)


def test_the_strict_pod_schema_sees_a_wrong_field() -> None:
    """The check above can fail."""
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x"},
        "spec": {"containers": [], "hostNetwrk": 1},
    }

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES[-1], strict=True)


def test_pods_are_restricted_but_for_exemptions_they_name(one: Cell) -> None:
    """Every pod is one of Pod Security's "restricted", but for what its annotation says: hostPath, IPC_LOCK."""
    for template in one.templates.values():
        assert _beyond_restricted(template) == _named(template)


def _named(template: Object) -> set[str]:
    annotation = template["metadata"].get("annotations", {}).get("gpt-oss-serving/pod-security-exemptions", "")
    return set(filter(None, annotation.split(",")))


def _beyond_restricted(template: Object) -> set[str]:
    spec = template["spec"]
    pod, own = spec["securityContext"], container(template)["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {it["name"] for it in pod["sysctls"]} <= SAFE_SYSCTLS
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"]["drop"] == ["ALL"]
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    return (kinds - VOLUMES) | set(own["capabilities"].get("add", ()))


def test_the_root_is_read_only_and_what_is_written_is_declared(one: Cell) -> None:
    """Nothing writes to the root; /tmp, /dev/shm and the logs are emptyDirs, the cache a volume, weights cannot be changed."""
    for name, template in one.templates.items():
        mounts = {it["mountPath"]: it for it in container(template)["volumeMounts"]}
        volumes = {it["name"]: it for it in template["spec"]["volumes"]}

        assert container(template)["securityContext"]["readOnlyRootFilesystem"] is True
        for path in ("/tmp", "/dev/shm", "/var/lib/serving/logs"):
            assert "emptyDir" in volumes[mounts[path]["name"]]
        if name in one.engine_groups:
            assert mounts["/var/lib/serving/models"]["readOnly"] is True
            assert "/var/lib/serving/cache" in mounts


def test_the_api_server_is_the_autoscalers_alone(one: Cell) -> None:
    """No pod is given a token of the API server, but Ray's autoscaler where nodes may grow, in its own container."""
    for template in one.templates.values():
        assert template["spec"]["automountServiceAccountToken"] is False
        assert not [it for it in container(template)["volumeMounts"] if "kubernetes.io" in it["mountPath"]]
    head = one.templates["head"]["spec"]
    tokens = [it["name"] for it in head["volumes"] if "projected" in it]
    mounts = one.cluster.get("autoscalerOptions", {}).get("volumeMounts", [])
    assert [it["name"] for it in mounts if "kubernetes.io" in it["mountPath"]] == tokens
    # KubeRay makes the autoscaler's account, with a Role, unless the head names one.
    assert ("serviceAccountName" in head) is not one.cluster.get("enableInTreeAutoscaling", False)


def test_names_are_short_enough_for_kuberay(one: Cell) -> None:
    """KubeRay refuses RayServices with longer names than 47, and cuts pods' names."""
    assert len(one.service["metadata"]["name"]) <= 47
