"""Pod Security in the chart: every pod keeps to "restricted", takes any user, writes where it says, and shows no secret."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.helm.cells import Object, render
from tests.helm.chart import FILES, Pod, pods, read, shipped

#: Volumes of Pod Security "restricted".
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
#: The pods that speak to the API server: the Job that makes Secrets, and a head with Ray's autoscaler.
SPEAKS_TO_API_SERVER = ("Job/", "-secrets")


def _pods(name: str) -> list[Pod]:
    return list(pods(shipped(name)))


@pytest.mark.parametrize("name", FILES)
def test_every_pod_is_restricted(name: str) -> None:
    """What Pod Security "restricted" asks for, and a root file system that nobody writes to, but for exemptions said aloud."""
    exempt = set(read(FILES[name]).get("engine", {}).get("podSecurityExemptions", []))
    for pod in _pods(name):
        security = pod.spec["securityContext"]
        assert security["runAsNonRoot"] is True and security["seccompProfile"] == {"type": "RuntimeDefault"}, pod.owner
        assert not any(pod.spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), pod.owner
        kinds = {kind for volume in pod.spec["volumes"] for kind in volume.keys() - {"name"}}
        assert kinds <= VOLUMES | (exempt & {"hostPath"}), pod.owner
        for container in pod.containers:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True, pod.owner
            assert own["capabilities"]["drop"] == ["ALL"], pod.owner
            assert set(own["capabilities"].get("add", [])) <= exempt, pod.owner
            assert "runAsUser" not in own and not any("hostPort" in port for port in container.get("ports", []))


@pytest.mark.parametrize("name", FILES)
def test_users_are_fixed_or_the_platforms(name: str) -> None:
    """On OpenShift no pod names a user or a group; elsewhere all have the same ones, and group 0 of the images' folders."""
    is_openshift = read(FILES[name]).get("openshift", False)
    given = read(FILES[name]).get("security", {"runAsUser": 10001, "fsGroup": 10001})
    for pod in _pods(name):
        named = {key: pod.spec["securityContext"].get(key) for key in ("runAsUser", "runAsGroup", "fsGroup")}
        own = {"runAsUser": given["runAsUser"], "runAsGroup": 0, "fsGroup": given["fsGroup"]}
        assert named == (dict.fromkeys(named) if is_openshift else own), pod.owner


@pytest.mark.parametrize("name", FILES)
def test_writable_paths_are_volumes(name: str) -> None:
    """What a process may write to is mounted: /tmp everywhere but in `helm test`; emptyDirs on disk are bounded."""
    for pod in _pods(name):
        for container in pod.containers:
            paths = {it["mountPath"] for it in container.get("volumeMounts", []) if not it.get("readOnly")}
            assert "/tmp" in paths or pod.owner.startswith("Pod/") or "init" in container["name"], pod.owner
            assert not {path for path in paths if not path.startswith(("/tmp", "/var/lib/serving", "/dev/shm"))}, (
                pod.owner
            )


@pytest.mark.parametrize("name", FILES)
def test_no_pod_has_an_api_token_for_nothing(name: str) -> None:
    """Tokens of the service account are mounted where the API server is spoken to, and nowhere else."""
    for pod in _pods(name):
        if pod.owner.startswith(SPEAKS_TO_API_SERVER[0]) and pod.owner.endswith(SPEAKS_TO_API_SERVER[1]):
            assert pod.spec["automountServiceAccountToken"] is True
        else:
            assert pod.spec["automountServiceAccountToken"] is False, pod.owner


@pytest.mark.parametrize("name", FILES)
def test_every_container_says_what_it_needs(name: str) -> None:
    """CPU and memory are requested, so that the scheduler knows; no CPU limit, which shows as gaps between tokens."""
    for pod in _pods(name):
        for container in pod.containers:
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, (pod.owner, container["name"])
            assert "cpu" not in container["resources"].get("limits", {}), (pod.owner, container["name"])


@pytest.mark.parametrize("name", FILES)
def test_no_secret_is_rendered(name: str) -> None:
    """No Secret object, and no value of one in environment, settings or annotations: GitOps keeps all of it in git."""
    objects = shipped(name)
    text = yaml.safe_dump_all(objects)

    assert "Secret" not in {it["kind"] for it in objects}
    assert not re.search(
        r"sk-[a-z0-9]{10}-[\w-]{43}|postgresql://\S+:\S+@|BEGIN [A-Z ]*PRIVATE KEY", _without_check(text)
    )
    for pod in pods(objects):
        for container in pod.containers:
            for variable in container.get("env", []):
                assert not re.search(r"TOKEN|PASSWORD|SECRET_KEY", variable["name"]) or "value" not in variable, (
                    variable
                )


def test_the_pepper_stays_in_the_gateway_plane() -> None:
    """Gateways, their migration and `helm test` mount the keys' Secret; nothing of a Ray cluster does."""
    for name in FILES:
        for pod in _pods(name):
            secrets = {it["secret"]["secretName"] for it in pod.spec["volumes"] if "secret" in it}
            component = pod.labels["app.kubernetes.io/component"]
            if component in {"head", "directory", "engine"}:
                assert not [it for it in secrets if it.endswith("-keys")], pod.owner


def test_images_are_pinned_by_digest_where_one_is_given() -> None:
    """A digest wins over the tag; the registry stands before every image; pull secrets reach every pod."""
    digest = f"sha256:{'a' * 64}"
    values: Object = {"images": {"pullSecrets": ["registry"], "gateway": {"digest": digest}, "head": {"tag": "1.2.3"}}}
    found = list(pods(render(values)))
    images = {container["image"] for pod in found for container in pod.containers}

    assert f"registry.example.com/serving/gateway@{digest}" in images
    assert "registry.example.com/serving/engine-cpu:1.2.3" in images
    assert all(image.startswith("registry.example.com/serving/") for image in images)
    assert all(pod.spec["imagePullSecrets"] == [{"name": "registry"}] for pod in found)


def _without_check(text: str) -> str:
    """Without the made-up key that `helm test` shows to be refused."""
    return text.replace("sk-nobodymade-", "")
