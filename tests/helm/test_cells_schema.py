"""Cells against what will read them: KubeRay 1.7's own schema, Kubernetes' own of a pod, Pod Security's "restricted"."""

from __future__ import annotations

import kubernetes_validate
import pytest

from tests.helm.cells import Cell, Object, container, every_cell
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
