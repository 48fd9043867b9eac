"""NetworkPolicies in the chart: nothing is left without one, everything starts closed, and who speaks to whom is written here."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helm.cells import CHART, Object, render
from tests.helm.chart import FILES, Pod, of_kind, pods, shipped

#: The only ports a policy may open, with their meaning.
RANGES = {
    (53, 53): "DNS", (443, 443): "HTTPS", (5353, 5353): "OpenShift's DNS", (5432, 5432): "PostgreSQL",
    (6379, 6379): "Ray's GCS, or Redis", (6380, 6389): "Ray's services of a node", (6386, 6386): "Ray's metrics",
    (6443, 6443): "API server", (8000, 8000): "Serve's proxy", (8080, 8080): "the API", (8100, 8199): "engines",
    (8265, 8265): "Ray's dashboard", (9090, 9090): "gateways' metrics", (11000, 12999): "Ray's workers",
    (20000, 29999): "inside engines", (52365, 52365): "Ray's agent",
}  # fmt: skip
SHARED: Object = {
    "store": {"postgresql": {"secretName": "serving-database"}},
    "networkPolicy": {"postgresql": {"peers": [{"ipBlock": {"cidr": "10.0.0.10/32"}}]}},
}


class Opening(NamedTuple):
    """One rule of one policy, as far as it is of pods of the release."""

    direction: str
    peers: list[Object]
    ports: set[tuple[int, int]]


@pytest.mark.parametrize("name", FILES)
def test_no_pod_is_left_without_a_policy(name: str) -> None:
    """Every pod, of Jobs and `helm test` too, is selected for both directions by default-deny and by a policy of its own."""
    objects = shipped(name)
    for pod in pods(objects):
        selecting = [it for it in of_kind(objects, "NetworkPolicy") if _selects(it, pod)]
        both = [it for it in selecting if set(it["spec"]["policyTypes"]) == {"Ingress", "Egress"}]
        names = [it["metadata"]["name"] for it in both]
        assert any(it.endswith("-default-deny") for it in names), pod.owner
        assert len(names) >= 2, pod.owner


@pytest.mark.parametrize("name", FILES)
def test_default_deny_opens_nothing(name: str) -> None:
    """It selects every pod of the release and has no rule."""
    (deny,) = [it for it in of_kind(shipped(name), "NetworkPolicy") if it["metadata"]["name"].endswith("-default-deny")]

    assert deny["spec"].keys() == {"podSelector", "policyTypes"}
    assert deny["spec"]["podSelector"]["matchLabels"].keys() == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}


@pytest.mark.parametrize("name", [name for name in FILES if name != "every-key"])
def test_ports_are_the_named_ranges(name: str) -> None:
    """Every rule names its ports and its peers, and every port is one of the table."""
    for policy in of_kind(shipped(name), "NetworkPolicy"):
        for rule in [*(policy["spec"].get("ingress") or []), *(policy["spec"].get("egress") or [])]:
            assert rule.get("from") or rule.get("to"), policy["metadata"]["name"]
            assert _ports(rule) and _ports(rule) <= RANGES.keys(), policy["metadata"]["name"]


#: Who may open a connection to whom, and where: all of it, for a release with one cell.
SPOKEN = {
    ("gateway", "directory"): {(8000, 8000)},
    ("gateway", "engine"): {(8100, 8199)},
    ("test", "gateway"): {(8080, 8080), (9090, 9090)},
    **{
        (one, other): {(6380, 6389), (52365, 52365), (11000, 12999)}
        | ({(6379, 6379), (8265, 8265)} if other == "head" else set())
        | ({(20000, 29999)} if one == other == "engine" else set())
        for one in ("head", "directory", "engine")
        for other in ("head", "directory", "engine")
    },
}


def test_who_speaks_to_whom() -> None:
    """Between pods of a release exactly these connections pass, that is, leave one side and are let in by the other."""
    objects = render({})
    found = {
        (_role(pod), _role(other)): _open_between(objects, pod, other)
        for pod in pods(objects)
        for other in pods(objects)
    }

    assert {pair: ports for pair, ports in found.items() if ports} == SPOKEN


def test_cells_are_closed_to_each_other() -> None:
    """One Ray cluster never reaches another; gateways reach every cell."""
    objects = render({"cells": {"a": {}, "b": {}}})
    of_cell = {
        (pod.labels["gpt-oss-serving/cell"], _role(pod)): pod
        for pod in pods(objects)
        if "gpt-oss-serving/cell" in pod.labels
    }
    (gateway,) = [pod for pod in pods(objects) if _role(pod) == "gateway"]

    for (cell, role), pod in of_cell.items():
        for (other_cell, _), other in of_cell.items():
            assert bool(_open_between(objects, pod, other)) == (cell == other_cell)
        assert bool(_open_between(objects, gateway, pod)) == (role in {"directory", "engine"})


@pytest.mark.parametrize("plane", ["gateway", "engine"])
def test_traces_leave_the_plane_that_makes_them(plane: str) -> None:
    """To the collector alone, and from nobody else."""
    collector = {"ipBlock": {"cidr": "10.0.0.12/32"}}
    tracing: Object = {
        plane: {"settings": {"traces_endpoint": "http://10.0.0.12:4318/v1/traces"}},
        "networkPolicy": {"traces": {"peers": [collector]}},
    }
    objects = render(tracing)

    opened = {_role(pod) for pod in pods(objects) for _, _, ports in _outside(objects, pod) if (4318, 4318) in ports}
    assert opened == {plane}


def test_gateways_alone_reach_the_issuers_of_single_sign_on() -> None:
    """Where the settings name some, and at the ports that the values name."""
    issuer = {"issuer": "https://sso.example.com", "audiences": ["llm"], "tenant": "acme"}
    objects = render(
        {
            "gateway": {"settings": {"oidc": [issuer]}},
            "networkPolicy": {"issuers": {"peers": [{"ipBlock": {"cidr": "10.0.0.12/32"}}], "ports": [8443]}},
        }
    )

    opened = {_role(pod) for pod in pods(objects) for _, _, ports in _outside(objects, pod) if (8443, 8443) in ports}
    assert opened == {"gateway"}


def test_a_console_with_a_port_of_its_own_is_reached_by_its_peers_alone() -> None:
    """At that port, by a Service of its own; without one there is neither."""
    peers = [{"ipBlock": {"cidr": "10.1.0.0/16"}}]
    objects = render(
        {"gateway": {"settings": {"console": {"port": 8091}}}, "networkPolicy": {"console": peers, "clients": []}}
    )
    opened = {_role(pod) for pod in pods(objects) for _, _, ports in _outside(objects, pod) if (8091, 8091) in ports}
    assert opened == {"gateway"}
    names = {it["metadata"]["name"] for it in of_kind(objects, "Service")}
    assert any(name.endswith("-console") for name in names)
    for console in ({}, {"console": {"port": 8091, "enabled": False}}):
        plain = render({"gateway": {"settings": console}})
        assert not any(it["metadata"]["name"].endswith("-console") for it in of_kind(plain, "Service"))


def test_outside_peers() -> None:
    """What leaves or enters the release, by component: names, the database, the hub, the API server, Prometheus, the operator."""
    objects = render(SHARED)

    outside = {
        _role(pod): {(direction, ports) for direction, _, all_ports in _outside(objects, pod) for ports in all_ports}
        for pod in pods(objects)
    }
    dns = ("egress", (53, 53))
    api_server = {("egress", (443, 443)), ("egress", (6443, 6443))}
    assert outside == {
        "gateway": {dns, ("ingress", (8080, 8080)), ("ingress", (9090, 9090)), ("egress", (5432, 5432))},
        "head": {dns, ("ingress", (8265, 8265)), ("ingress", (8000, 8000)), ("ingress", (6386, 6386))},
        "directory": {dns, ("ingress", (6386, 6386))},
        "engine": {dns, ("ingress", (6386, 6386)), ("ingress", (8100, 8199))},
        "secrets": {dns, *api_server},
        "migrate": {dns, ("egress", (5432, 5432))},
        "weights": {dns, ("egress", (443, 443))},
        "test": {dns},
    }


def test_prometheus_reaches_what_it_scrapes() -> None:
    """Every pod that a monitor selects lets Prometheus in where it is scraped; and no pod lets it in anywhere else."""
    objects = render({"monitoring": {"serviceMonitor": {"enabled": True}}})
    scraped = {"gateway": {(9090, 9090)}, "head": {(6386, 6386), (8000, 8000)}, "directory": {(6386, 6386)}}
    scraped["engine"] = {(6386, 6386), (8100, 8199)}
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}

    let_in = {
        _role(pod): {ports for it in _outside(objects, pod) if prometheus in it.peers for ports in it.ports}
        for pod in pods(objects)
    }
    assert {role: ports for role, ports in let_in.items() if ports} == scraped


def test_engines_reach_nobody_outside() -> None:
    """Where prompts are, there is no way out of the cell but names: not to the hub, not to the internet.

    Nor to a collector of traces, unless the settings name one, as the file with every key does.
    """
    for name in set(FILES) - {"every-key"}:
        objects = shipped(name)
        for pod in pods(objects):
            if _role(pod) == "engine":
                leaving = [it for it in _outside(objects, pod) if it.direction == "egress"]
                assert {ports for it in leaving for ports in it.ports} <= {(53, 53), (5353, 5353)}, name


def test_a_verifying_job_reaches_nobody() -> None:
    """Weights that are there already are compared offline."""
    objects = shipped("air-gapped")
    (job,) = [pod for pod in pods(objects) if _role(pod) == "weights"]

    assert [it.ports for it in _outside(objects, job)] == [{(53, 53)}]


def test_an_ingress_lets_its_controller_in() -> None:
    """Only then is the controller's namespace a peer."""
    ingress = {"gateway": {"ingress": {"enabled": True, "host": "llm.example.com"}}}
    own = {
        "networkPolicy": {
            "clients": [],
            "ingressControllers": [{"namespaceSelector": {"matchLabels": {"name": "edge"}}}],
        }
    }

    def let_in(values: Object) -> list[Object]:
        objects = render(values)
        (gateway,) = [pod for pod in pods(objects) if _role(pod) == "gateway"]
        return [peer for it in _outside(objects, gateway) if (8080, 8080) in it.ports for peer in it.peers]

    assert let_in(own) == []
    assert let_in(own | ingress) == [{"namespaceSelector": {"matchLabels": {"name": "edge"}}}]


def test_redis_and_the_api_server_are_the_heads() -> None:
    """Fault tolerance opens Redis, Ray's autoscaler the API server, for heads alone."""
    objects = shipped("every-key")
    for pod in pods(objects):
        ports = {it for opening in _outside(objects, pod) if opening.direction == "egress" for it in opening.ports}
        if "gpt-oss-serving/cell" in pod.labels:
            assert ((6380, 6380) in ports and (443, 443) in ports) == (_role(pod) == "head"), pod.owner


def test_an_empty_list_opens_nothing() -> None:
    """Without peers a rule would let everybody in: an empty list in the values takes the rule away."""
    lists: Object = {name: [] for name in ("clients", "ingressControllers", "monitoring", "operator")}
    peers: Object = {name: {"peers": []} for name in ("dns", "redis", "hub")}
    values = {
        "networkPolicy": lists | peers | {"apiServer": {"cidrs": []}},
        "secrets": {"plane": "given", "keys": "given", "vault": "given"},
        "gateway": {"ingress": {"enabled": True, "host": "llm.example.com"}},
        "engine": {"settings": {"nodes_may_grow": True}},
    }
    objects = render(values)

    openings = [it for pod in pods(objects) for it in _openings(objects, pod)]
    assert openings and all(it.peers and all(_is_own(peer) for peer in it.peers) for it in openings)


def test_policies_can_be_left_out() -> None:
    """For a network plugin that enforces none, or an administrator who writes his own."""
    assert of_kind(render({"networkPolicy": {"enabled": False}}), "NetworkPolicy") == []


@pytest.mark.parametrize("path", sorted((CHART / "templates").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_opening_is_named(path: Path) -> None:
    """Above each rule of a policy stands a comment that says who it is for."""
    lines = path.read_text().splitlines()
    for above, line in pairwise(lines):
        if re.match(r"    - (from|to):", line):
            assert above.strip().startswith("#"), line


def _role(pod: Pod) -> str:
    """A component; of Jobs, which."""
    return pod.labels.get("gpt-oss-serving/job") or pod.labels["app.kubernetes.io/component"]


def _selects(policy: Object, pod: Pod) -> bool:
    return bool(policy["spec"]["podSelector"]["matchLabels"].items() <= pod.labels.items())


def _openings(objects: list[Object] | tuple[Object, ...], pod: Pod) -> list[Opening]:
    """Rules count in the directions that their policy names: Kubernetes ignores others."""
    found = []
    for policy in of_kind(objects, "NetworkPolicy"):
        for direction, side in (("ingress", "from"), ("egress", "to")):
            if _selects(policy, pod) and direction.title() in policy["spec"]["policyTypes"]:
                found += [Opening(direction, it[side], _ports(it)) for it in policy["spec"].get(direction) or []]
    return found


def _ports(rule: Object) -> set[tuple[int, int]]:
    return {(it["port"], it.get("endPort", it["port"])) for it in rule["ports"]}


def _is_own(peer: Object) -> bool:
    """Is it pods of this release?"""
    return "app.kubernetes.io/instance" in peer.get("podSelector", {}).get("matchLabels", {})


def _outside(objects: list[Object] | tuple[Object, ...], pod: Pod) -> list[Opening]:
    """Openings to and from everybody else."""
    found = [it._replace(peers=[peer for peer in it.peers if not _is_own(peer)]) for it in _openings(objects, pod)]
    return [it for it in found if it.peers]


def _open_between(objects: list[Object], one: Pod, other: Pod) -> set[tuple[int, int]]:
    """Ports on which `one` may call `other`: what it is let out to and let in on."""

    def allowed(pod: Pod, direction: str, peer: Pod) -> set[tuple[int, int]]:
        return {
            ports
            for it in _openings(objects, pod)
            if it.direction == direction
            and any(
                _is_own(own) and own["podSelector"]["matchLabels"].items() <= peer.labels.items() for own in it.peers
            )
            for ports in it.ports
        }

    return allowed(one, "egress", other) & allowed(other, "ingress", one)
