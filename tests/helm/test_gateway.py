"""The gateway in the chart: its settings, its probes, how it stops, how many there are, and what may stand before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from serving import config
from serving.config import Settings
from serving.gateway.server import IDLE_CLIENT_S
from tests.helm.cells import CHART, Object, refusal, render
from tests.helm.chart import FILES, Pod, helm, named, of_kind, pods, read, shipped

#: Seconds that openai-python waits by default.
CLIENT_S = 600
SHARED: Object = {
    "store": {"postgresql": {"secretName": "serving-database"}},
    "networkPolicy": {"postgresql": {"peers": [{"ipBlock": {"cidr": "10.0.0.10/32"}}]}},
}
TLS: Object = {"gateway": {"tls": {"secretName": "api-tls"}}}
SIGN_ON: Object = {
    "gateway": {
        "issuerCa": {"secretName": "company-ca"},
        "settings": {
            "oidc": [
                {
                    "issuer": "https://sso.example.com",
                    "audiences": ["llm"],
                    "tenant": "acme",
                    "ca_file": "/etc/serving/issuer-ca/ca.crt",
                    "client_id": "console",
                    "client_secret_file": "/etc/serving/issuer-clients/company",
                }
            ]
        },
        "issuerClients": {"secretName": "company-clients"},
    },
    "networkPolicy": {"issuers": {"peers": [{"ipBlock": {"cidr": "10.0.0.12/32"}}]}},
}
PLANE_TLS: Object = {"acknowledgePlaintextBetweenPlanes": False, "planeTls": {"secretName": "planes"}}


@pytest.mark.parametrize("name", FILES)
def test_the_gateway_takes_its_settings(name: str, tmp_path: Path) -> None:
    """settings.yaml of every values file is one that `serving gateway` loads, and says what the values say."""
    values = _over(read(CHART / "values.yaml"), read(FILES[name]))

    settings = _loaded(_settings_file(shipped(name)), tmp_path)

    gateway = values["gateway"]
    assert settings.gateway.drain_timeout_s == gateway["settings"]["drain_timeout_s"]
    assert settings.gateway.timeouts.request_total_s == gateway["timeouts"]["request_total_s"]
    assert settings.gateway.aliases == values["aliases"]
    assert (settings.gateway.host, settings.gateway.port, settings.gateway.metrics_port) == ("0.0.0.0", 8080, 9090)
    assert len(settings.gateway.directories) == len(values["cells"])
    assert str(settings.home) == "/var/lib/serving"


def test_settings_pass_through_as_they_are(tmp_path: Path) -> None:
    """Every key of GatewaySettings that the values take arrives, numbers unharmed."""
    settings = _loaded(_settings_file(shipped("every-key")), tmp_path)

    given = read(FILES["every-key"])["gateway"]
    assert (
        settings.gateway.model_dump(mode="json", include=set(given["settings"]), exclude_none=True) == given["settings"]
    )
    assert settings.gateway.timeouts.model_dump() == given["timeouts"]


def test_files_that_settings_name_are_mounted() -> None:
    """Whatever file settings.yaml points to lies in a folder that the pod mounts, with exactly the Secret's keys it needs."""
    for values in ({}, SHARED, TLS, PLANE_TLS, SIGN_ON):
        objects = render(values)
        settings, pod = yaml.safe_load(_settings_file(objects)), _pod(objects)
        mounts = {it["mountPath"]: it for it in pod.spec["containers"][0]["volumeMounts"]}
        for path in _files(settings):
            assert mounts[str(path.parent)]["readOnly"], path
        assert settings["plane_secret_file"] == "/etc/serving/plane/plane.secret"
        assert ("url_file" in settings["store"]) == (values is SHARED)
        assert ("tls" in settings["gateway"]) == (values is TLS)
        assert ("plane_tls" in settings) == (values is PLANE_TLS)


def test_directories_are_the_cells_services() -> None:
    """One URL for each cell, of a Service that exists, with the planes' scheme."""
    for values, scheme in (({"cells": {"b": {}}}, "http"), (PLANE_TLS, "https")):
        objects = render(values)
        for url in yaml.safe_load(_settings_file(objects))["gateway"]["directories"]:
            assert url.startswith(f"{scheme}://")
            service = named(objects, "Service", url.removeprefix(f"{scheme}://").removesuffix(":8000"))
            assert 8000 in {port["port"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize("scheme", ["HTTP", "HTTPS"])
def test_probes(scheme: str) -> None:
    """Live asks the process alone, ready whether it takes requests; both on the API's port and with its scheme."""
    pod = _pod(render(TLS if scheme == "HTTPS" else {}))

    (container,) = pod.spec["containers"]
    paths = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: probe["path"] for kind, probe in paths.items()} == {
        "startup": "/health/live", "liveness": "/health/live", "readiness": "/health/ready",
    }  # fmt: skip
    assert {(probe["port"], probe["scheme"]) for probe in paths.values()} == {(8080, scheme)}
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        scheme.lower(): 8080,
        "metrics": 9090,
    }


@pytest.mark.parametrize("name", FILES)
def test_the_order_of_time_outs(name: str, tmp_path: Path) -> None:
    """Client > what stands before the gateway > a request > what it waits for inside; and a pod's end is later than its answers'."""
    objects = shipped(name)
    settings = _loaded(_settings_file(objects), tmp_path).gateway
    pod = _pod(objects)
    waits = settings.timeouts

    assert CLIENT_S > waits.request_total_s > waits.wake_wait_s > waits.engine_silence_s > waits.request_body_s
    assert waits.request_body_s > waits.replica_wait_s > waits.keep_alive_s > waits.engine_connect_s
    for limit in _edge_limits(objects):
        assert CLIENT_S > limit >= waits.request_total_s
    sleep = pod.spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod.spec["terminationGracePeriodSeconds"] > sleep + settings.drain_timeout_s


def test_the_default_drain_cuts_no_answer() -> None:
    """As shipped a stopping gateway waits as long as any answer may take."""
    defaults = read(CHART / "values.yaml")["gateway"]

    assert defaults["settings"]["drain_timeout_s"] >= defaults["timeouts"]["request_total_s"]


@pytest.mark.parametrize(("given", "grace"), [(0, 10 + 600 + 15), (900, 900)])
def test_the_grace_period_follows_the_drain_limit(given: int, grace: int) -> None:
    """Derived unless given; fractions are rounded up."""
    values = {"gateway": {"settings": {"drain_timeout_s": 599.2}, "terminationGracePeriodSeconds": given}}

    assert _pod(render(values)).spec["terminationGracePeriodSeconds"] == grace


def test_no_sleep_means_no_hook() -> None:
    """Kubernetes before 1.33 takes no sleep of zero seconds."""
    (container,) = _pod(render({"gateway": {"preStopSleepS": 0}})).spec["containers"]

    assert "lifecycle" not in container


def test_sqlite_is_for_one_gateway() -> None:
    """Its volume outlives pods and uninstalling, and the old pod is gone before the new one opens it."""
    objects = render({})
    (deployment,) = of_kind(objects, "Deployment")
    claim = named(objects, "PersistentVolumeClaim", "test-gpt-oss-serving-store")

    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert _volume(_pod(objects), "home")["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert not [it for it in of_kind(objects, "Job") if it["metadata"]["name"].endswith("-migrate")]


def test_postgresql_is_for_several() -> None:
    """No volume, no gap: a new gateway answers before an old one leaves."""
    objects = render(SHARED | {"gateway": {"replicas": 3}})
    (deployment,) = of_kind(objects, "Deployment")

    assert deployment["spec"]["replicas"] == 3
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "emptyDir" in _volume(_pod(objects), "home")
    assert "test-gpt-oss-serving-store" not in {
        it["metadata"]["name"] for it in of_kind(objects, "PersistentVolumeClaim")
    }


def test_counters_of_several_are_in_redis_by_a_secret() -> None:
    """It is mounted as a file, the settings name that file, and gateways may reach the server; without it, none of this is there."""
    counters: Object = {"secretName": "serving-counters", "key": "redis-url", "settings": {"timeout_s": 0.5}}
    reached = {"networkPolicy": {"counters": {"peers": [{"ipBlock": {"cidr": "10.0.0.12/32"}}], "port": 6390}}}
    objects = render({"gateway": {"counters": counters}} | reached)
    settings = yaml.safe_load(_settings_file(objects))
    policy = named(objects, "NetworkPolicy", "test-gpt-oss-serving-gateway")

    assert settings["gateway"]["counters"] == {"url_file": "/etc/serving/counters/url", "timeout_s": 0.5}
    assert _volume(_pod(objects), "counters")["secret"] == {
        "secretName": "serving-counters",
        "defaultMode": 0o440,
        "items": [{"key": "redis-url", "path": "url"}],
    }
    (mount,) = [it for it in _pod(objects).spec["containers"][0]["volumeMounts"] if it["name"] == "counters"]
    assert mount == {"name": "counters", "mountPath": "/etc/serving/counters", "readOnly": True}
    assert [rule["ports"] for rule in policy["spec"]["egress"] if rule["ports"] == [{"port": 6390}]] == [
        [{"port": 6390}]
    ]
    assert "counters" not in yaml.safe_load(_settings_file(render({})))["gateway"]
    assert not [it for it in _pod(render({})).spec["volumes"] if it["name"] == "counters"]


def test_files_are_in_an_object_store_or_in_a_volume_of_all() -> None:
    """The settings name either; an object store has its credentials from a Secret, and gateways may reach it. By default there are none."""
    bucket: Object = {
        "enabled": True,
        "url": "s3://batches",
        "credentialsSecret": "bucket",
        "settings": {"lines_max": 5},
    }
    peers = {"networkPolicy": {"files": {"peers": [{"ipBlock": {"cidr": "10.0.0.14/32"}}], "port": 9000}}}
    objects = render({"gateway": {"files": bucket}} | peers)
    policy = named(objects, "NetworkPolicy", "test-gpt-oss-serving-gateway")
    volume = render({"gateway": {"files": {"enabled": True, "existingClaim": "shared"}}})

    def files(rendered: list[Object] | tuple[Object, ...]) -> Object:
        said: Object = yaml.safe_load(_settings_file(rendered))["gateway"]["files"]
        return said

    assert files(objects) == {"enabled": True, "url": "s3://batches", "lines_max": 5}
    assert _pod(objects).spec["containers"][0]["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    assert [{"port": 9000}] in [rule["ports"] for rule in policy["spec"]["egress"]]
    assert files(volume) == {"enabled": True, "folder": "/var/lib/serving-files"}
    assert _volume(_pod(volume), "files")["persistentVolumeClaim"] == {"claimName": "shared"}
    assert files(render({})) == {"enabled": False}


def test_a_change_of_settings_is_a_new_pod() -> None:
    """Settings are read at the start: the pod carries their checksum, and nothing else of the values."""

    def checksum(values: Object) -> str:
        (deployment,) = of_kind(render(values), "Deployment")
        text: str = deployment["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
        return text

    assert checksum({}) != checksum({"aliases": {"gpt-4o": "gpt-oss-120b"}})
    assert checksum({}) == checksum({"gateway": {"service": {"type": "NodePort"}}})


def test_autoscaling() -> None:
    """CPU decides; open requests only where something serves them as a metric, by the name the gateway exports."""
    scaled = SHARED | {"gateway": {"autoscaling": {"enabled": True}}}
    (by_cpu,) = of_kind(render(scaled), "HorizontalPodAutoscaler")
    scaled["gateway"]["autoscaling"]["metricsAdapter"] = True
    objects = render(scaled)
    (by_both,) = of_kind(objects, "HorizontalPodAutoscaler")
    (deployment,) = of_kind(objects, "Deployment")

    assert [it["type"] for it in by_cpu["spec"]["metrics"]] == ["Resource"]
    assert [it["type"] for it in by_both["spec"]["metrics"]] == ["Resource", "Pods"]
    assert by_both["spec"]["metrics"][1]["pods"]["metric"]["name"] == "serving_gateway_open_requests"
    assert by_both["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    # Or every upgrade would set back what was scaled.
    assert "replicas" not in deployment["spec"]


@pytest.mark.parametrize("name", FILES)
def test_gateways_are_spread_and_go_one_at_a_time(name: str) -> None:
    """A budget that selects them, and a spread over nodes that selects them."""
    objects = shipped(name)
    pod = _pod(objects)
    (budget,) = [
        it for it in of_kind(objects, "PodDisruptionBudget") if it["metadata"]["labels"].get("app.kubernetes.io/component") == "gateway"
    ]  # fmt: skip

    assert budget["spec"]["maxUnavailable"] == 1
    selectors = [budget["spec"]["selector"], *(it["labelSelector"] for it in pod.spec["topologySpreadConstraints"])]
    assert all(it["matchLabels"].items() <= pod.labels.items() for it in selectors)
    assert pod.spec["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"


def test_metrics_are_not_behind_the_apis_service() -> None:
    """The Service that may be a load balancer has the API's port and no other."""
    objects = render({"gateway": {"service": {"type": "LoadBalancer"}}})

    api = named(objects, "Service", "test-gpt-oss-serving")
    assert [(port["port"], port["targetPort"]) for port in api["spec"]["ports"]] == [(80, "http")]
    assert named(objects, "Service", "test-gpt-oss-serving-metrics")["spec"]["clusterIP"] == "None"


def test_the_api_over_tls() -> None:
    """With a certificate the Service listens on 443, from a Secret or from cert-manager, which then makes the same Secret."""
    issued = {"gateway": {"tls": {"certManager": {"issuer": "company", "dnsNames": ["llm.example.com"]}}}}
    for values in (TLS, issued):
        objects = render(values)
        api = named(objects, "Service", "test-gpt-oss-serving")
        assert [(port["name"], port["port"]) for port in api["spec"]["ports"]] == [("https", 443)]
    (certificate,) = of_kind(render(issued), "Certificate")

    assert certificate["spec"]["secretName"] == _volume(_pod(render(issued)), "gateway-tls")["secret"]["secretName"]
    assert {"test-gpt-oss-serving", "llm.example.com"} <= set(certificate["spec"]["dnsNames"])


INGRESS: Object = {"enabled": True, "host": "llm.example.com"}


@pytest.mark.parametrize("controller", ["nginx", "nginx-inc", "haproxy"])
def test_an_ingress_neither_buffers_nor_cuts(controller: str) -> None:
    """The controller's own words for it; the values' annotations win."""
    values = {"gateway": {"ingress": INGRESS | {"controller": controller}, "timeouts": {"request_total_s": 300}}}
    (ingress,) = of_kind(render(values), "Ingress")
    notes = ingress["metadata"]["annotations"]
    key = next(name for name in notes if "timeout" in name)
    values["gateway"]["ingress"]["annotations"] = {key: "1000s"}
    (changed,) = of_kind(render(values), "Ingress")

    assert _edge_limits([ingress]) and set(_edge_limits([ingress])) == {305}
    assert controller == "haproxy" or {"off", "False"} & {value for name, value in notes.items() if "buffering" in name}
    assert changed["metadata"]["annotations"] == notes | {key: "1000s"}


def test_another_ingress_is_left_to_the_values() -> None:
    """Nothing is guessed for a controller the chart does not know, and the notes say what is missing."""
    values = {"gateway": {"ingress": INGRESS | {"controller": "other"}}}
    (ingress,) = of_kind(render(values), "Ingress")

    assert "annotations" not in ingress["metadata"]


@pytest.mark.parametrize("controller", ["nginx", "nginx-inc", "haproxy"])
def test_an_ingress_speaks_tls_to_a_gateway_that_wants_it(controller: str) -> None:
    """With gateway.tls there is one annotation more, and the backend port is https."""
    plain = {"gateway": {"ingress": INGRESS | {"controller": controller}}}
    (before,) = of_kind(render(plain), "Ingress")
    (after,) = of_kind(render({"gateway": plain["gateway"] | TLS["gateway"]}), "Ingress")

    assert len(after["metadata"]["annotations"]) == len(before["metadata"]["annotations"]) + 1
    assert after["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"] == {"name": "https"}


def test_an_ingress_certificate_covers_its_host() -> None:
    """From cert-manager or a Secret; without either the Ingress has none."""
    issued = {"gateway": {"ingress": INGRESS | {"tls": {"certManager": {"issuer": "company"}}}}}
    objects = render(issued)
    (ingress,), (certificate,) = of_kind(objects, "Ingress"), of_kind(objects, "Certificate")
    (plain,) = of_kind(render({"gateway": {"ingress": INGRESS}}), "Ingress")

    assert ingress["spec"]["tls"] == [{"secretName": certificate["spec"]["secretName"], "hosts": ["llm.example.com"]}]
    assert certificate["spec"]["dnsNames"] == ["llm.example.com"]
    assert "tls" not in plain["spec"]


def test_a_route_waits_as_long_as_a_request() -> None:
    """OpenShift's router cuts after 30 s unless told otherwise, and takes no key over plain HTTP."""
    (route,) = of_kind(shipped("openshift"), "Route")

    assert route["metadata"]["annotations"]["haproxy.router.openshift.io/timeout"] == "595s"
    assert route["spec"]["tls"] == {"termination": "edge", "insecureEdgeTerminationPolicy": "None"}


def test_an_httproute_waits_as_long_as_a_request() -> None:
    """One rule for everything, to the Service's port, with the time-out in the Gateway API's own field."""
    values = {
        "gateway": {
            "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["llm.example.com"]}
        }
    }
    (route,) = of_kind(render(values), "HTTPRoute")
    (rule,) = route["spec"]["rules"]

    assert rule["timeouts"] == {"request": "595s"}
    assert rule["backendRefs"] == [{"name": "test-gpt-oss-serving", "port": 80}]


def test_idle_connections_outlive_common_load_balancers() -> None:
    """A balancer must close an idle connection first; the chart sets none that waits longer than the gateway."""
    assert IDLE_CLIENT_S > 60


def test_no_service_becomes_a_setting() -> None:
    """Kubernetes writes every Service into the environment, and SERVING_… is refused by the settings: links are off."""
    result = helm("template", "serving", str(CHART), "--values", str(FILES["cpu-demo"]))
    found = list(pods([it for it in yaml.load_all(result.stdout, Loader=yaml.CSafeLoader) if it]))

    assert found and all(pod.spec["enableServiceLinks"] is False for pod in found)


def _settings_file(objects: list[Object] | tuple[Object, ...]) -> str:
    (text,) = [
        it["data"]["settings.yaml"]
        for it in of_kind(objects, "ConfigMap")
        if it["metadata"]["name"].endswith("-gateway")
    ]
    return str(text)


def _loaded(text: str, folder: Path) -> Settings:
    """As the gateway reads it, without what the schema of this branch lacks."""
    settings = yaml.safe_load(text)
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    return config.load(path, {})


def _files(node: Any) -> list[Path]:
    if isinstance(node, dict):
        own = [Path(value) for key, value in node.items() if key.endswith("_file")]
        return own + [path for value in node.values() for path in _files(value)]
    if isinstance(node, list):
        return [path for value in node for path in _files(value)]
    return []


def _pod(objects: list[Object] | tuple[Object, ...]) -> Pod:
    (found,) = [pod for pod in pods(objects) if pod.labels.get("app.kubernetes.io/component") == "gateway"]
    return found


def _volume(pod: Pod, name: str) -> Object:
    found: Object
    (found,) = [it for it in pod.spec["volumes"] if it["name"] == name]
    return found


def _edge_limits(objects: list[Object] | tuple[Object, ...]) -> list[float]:
    """Seconds that what stands before the gateway waits, wherever it says so."""
    notes = [it["metadata"].get("annotations", {}) for kind in ("Ingress", "Route") for it in of_kind(objects, kind)]
    said = [value for it in notes for name, value in it.items() if "timeout" in name]
    said += [rule["timeouts"]["request"] for it in of_kind(objects, "HTTPRoute") for rule in it["spec"]["rules"]]
    return [float(text.removesuffix("s")) for text in said]


def _over(base: Object, values: Object) -> Object:
    merged = dict(base)
    for key, value in values.items():
        merged[key] = (
            _over(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


@pytest.mark.parametrize("name", FILES)
def test_the_memory_limit_contains_what_clients_may_make_a_gateway_hold(name: str, tmp_path: Path) -> None:
    """Of every values file: the budget of bodies and answers, and 512 MiB for the process and its connections; several workers
    take 64 MiB each besides."""
    rendered = shipped(name)
    settings = _loaded(_settings_file(rendered), tmp_path)
    (pod,) = [pod for pod in pods(rendered) if pod.owner.startswith("Deployment/")]
    limit = str(pod.spec["containers"][0]["resources"]["limits"]["memory"])
    unit = {"Mi": 1, "Gi": 1024}[limit[-2:]]
    workers = settings.gateway.workers
    own = 512 + (64 * workers if workers > 1 else 0)
    assert int(limit[:-2]) * unit >= settings.gateway.max_held_bytes / 2**20 + own


def test_the_charts_budget_is_the_settings_own() -> None:
    """What stands in values.yaml is the default of serving/config.py."""
    values = read(CHART / "values.yaml")
    assert values["gateway"]["settings"]["max_held_bytes"] == config.GatewaySettings().max_held_bytes


def test_workers_need_room_of_their_own() -> None:
    """Two of them 128 MiB more than one process; what they hold for clients is divided among them, and no more."""
    assert "raise it to 1024Mi" in refusal(_with_workers(2, "1023Mi"))
    render(_with_workers(2, "1024Mi"))
    render(_with_workers(1, "896Mi"))


def _with_workers(count: int, limit: str) -> Object:
    return {"gateway": {"settings": {"workers": count}, "resources": {"limits": {"memory": limit}}}}


@pytest.mark.parametrize(
    ("limit", "is_enough"),
    [
        ("896Mi", True),
        ("895Mi", False),
        ("1Gi", True),
        ("0.8Gi", False),
        ("939524096", True),
        ("900M", False),
        ("1T", True),
    ],
)
def test_a_limit_is_understood_in_any_unit(limit: str, is_enough: bool) -> None:
    """As Kubernetes writes quantities."""
    given: Object = {"gateway": {"resources": {"limits": {"memory": limit}}}}
    if is_enough:
        render(given)
    else:
        assert "raise it to 896Mi" in refusal(given)
