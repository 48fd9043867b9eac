"""Refusals: what cannot work is refused before anything is installed, with a sentence that says what to do instead."""

from __future__ import annotations

import pytest

from tests.helm.cells import CHART, GIVEN, Object, refusal, render
from tests.helm.chart import helm

POSTGRESQL: Object = {"postgresql": {"secretName": "serving-database"}}
SIGN_ON: Object = {"issuer": "https://sso.example.com", "audiences": ["llm"], "tenant": "acme"}
REACHED: Object = {"postgresql": {"peers": [{"ipBlock": {"cidr": "10.0.0.10/32"}}]}}
ISSUER: Object = {"issuer": "company"}

REFUSED: dict[str, tuple[Object, str]] = {
    "several gateways on SQLite": (
        {"gateway": {"replicas": 2}},
        "gateway.replicas is 2 and there is no shared store: each gateway would have tenants, keys, a ledger and limits of its own; set gateway.replicas to 1, or name PostgreSQL's Secret in store.postgresql.secretName, where limits are then counted together, or in Redis with gateway.counters.secretName.",
    ),
    "tenants on SQLite": (
        {"tenants": {"file": {"tenants": {"acme": {}}}}},
        "tenants.file is set and there is no shared store: with SQLite run `serving apply` in the gateway's pod, or name PostgreSQL's Secret in store.postgresql.secretName.",
    ),
    "a tenant's key in no Secret": (
        {
            "store": POSTGRESQL,
            "networkPolicy": REACHED,
            "tenants": {"file": {"tenants": {"acme": {"keys": {"ci": {"key_file": "ci.key"}}}, "other": None}}},
        },
        "tenants.file names the key_file ci.key of acme, and no Secret holds it: name one in tenants.keysSecret.",
    ),
    "autoscaling on SQLite": (
        {"gateway": {"autoscaling": {"enabled": True}}},
        "gateway.autoscaling is enabled and there is no shared store: SQLite works with exactly one gateway; name PostgreSQL's Secret in store.postgresql.secretName.",
    ),
    "no model": (
        {"models": []},
        "No cell serves a model: name at least one cell in cells and at least one model in models.",
    ),
    "autoscaling upside down": (
        {
            "store": POSTGRESQL,
            "networkPolicy": REACHED,
            "gateway": {"autoscaling": {"enabled": True, "minReplicas": 9}},
        },
        "gateway.autoscaling.minReplicas is above maxReplicas.",
    ),
    "a memory limit below what clients may fill": (
        {"gateway": {"resources": {"limits": {"memory": "512Mi"}}}},
        "gateway.resources.limits.memory is 512Mi, and a gateway may hold 384 MiB of bodies and answers besides the 512 MiB that it and its connections take: raise it to 896Mi, or lower gateway.settings.max_held_bytes.",
    ),
    "an alias of nobody": (
        {"aliases": {"gpt-4o": "gpt-oss-20b"}},
        "aliases.gpt-4o is gpt-oss-20b, which no cell serves: name one of gpt-oss-120b, or add it to models.",
    ),
    "an alias of an alias": (
        {"aliases": {"gpt-4": "gpt-4o", "gpt-4o": "gpt-oss-120b"}},
        "aliases.gpt-4 is gpt-4o, which no cell serves: name one of gpt-oss-120b, or add it to models.",
    ),
    "an alias before a model": (
        {"models": [{"name": "gpt-oss-120b"}, {"name": "gpt-oss-20b"}], "aliases": {"gpt-oss-20b": "gpt-oss-120b"}},
        "aliases.gpt-oss-20b has the name of a served model and would hide it: give the alias another name.",
    ),
    "files that end with a pod": (
        {"store": POSTGRESQL, "networkPolicy": REACHED, "gateway": {"replicas": 2, "files": {"enabled": True}}},
        "gateway.files is enabled and each gateway would keep files in a folder of its own, which ends with its pod: name an object store in gateway.files.url, or a volume that all gateways mount in gateway.files.existingClaim.",
    ),
    "an object store out of reach": (
        {"gateway": {"files": {"enabled": True, "url": "s3://batches"}}},
        "networkPolicy.files.peers is empty: gateways could not reach the object store of files; list its peers, or set networkPolicy.enabled to false.",
    ),
    "a test of nobody": (
        {"tests": {"model": "gpt-oss-20b"}},
        "tests.model is gpt-oss-20b, which no cell serves: name one of gpt-oss-120b, or leave it empty.",
    ),
    "no time to drain": (
        {"gateway": {"settings": {"drain_timeout_s": 0}}},
        "gateway.settings.drain_timeout_s is 0: a stopping gateway would cut off every running answer; set at least 1 s, or request_total_s (590) or more to let all of them finish.",
    ),
    "drain longer than grace": (
        {"gateway": {"terminationGracePeriodSeconds": 600}},
        "gateway.terminationGracePeriodSeconds is 600, and a stopping gateway may take 605 s (preStopSleepS + drain_timeout_s): running answers would be cut off; raise it, or set it to 0 to have the chart compute it.",
    ),
    "Ingress and Route": (
        {
            "openshift": True,
            "security": {"runAsUser": 0, "fsGroup": 0},
            "gateway": {"ingress": {"enabled": True, "host": "x"}, "route": {"enabled": True}},
        },
        "gateway.ingress and gateway.route are enabled together: enable one of them.",
    ),
    "Ingress and HTTPRoute": (
        {
            "gateway": {
                "ingress": {"enabled": True, "host": "x"},
                "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
            }
        },
        "gateway.httpRoute and gateway.ingress are enabled together: enable one of them.",
    ),
    "gateway's certificate twice": (
        {"gateway": {"tls": {"secretName": "x", "certManager": ISSUER}}},
        "gateway.tls names both a Secret and a cert-manager issuer: name only one.",
    ),
    "Ingress' certificate twice": (
        {"gateway": {"ingress": {"enabled": True, "host": "x", "tls": {"secretName": "x", "certManager": ISSUER}}}},
        "gateway.ingress.tls names both a Secret and a cert-manager issuer: name only one.",
    ),
    "planes' certificate twice": (
        {"planeTls": {"secretName": "x", "certManager": ISSUER}},
        "planeTls names both a Secret and a cert-manager issuer: name only one.",
    ),
    "no host": (
        {"gateway": {"ingress": {"enabled": True}}},
        "gateway.ingress.host is empty: name the host that clients use.",
    ),
    "no parent": (
        {"gateway": {"httpRoute": {"enabled": True}}},
        "gateway.httpRoute.parentRefs is empty: name the Gateway that the route attaches to.",
    ),
    "HTTPRoute to a gateway with TLS": (
        {
            "gateway": {
                "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
                "tls": {"secretName": "x"},
            }
        },
        "gateway.httpRoute and gateway.tls are given together: an HTTPRoute speaks plain HTTP to its backend; remove gateway.tls and terminate TLS at the Gateway.",
    ),
    "Route elsewhere": (
        {"gateway": {"route": {"enabled": True}}},
        "gateway.route is enabled and openshift is not: Routes are OpenShift's; use gateway.ingress or gateway.httpRoute.",
    ),
    "edge before TLS": (
        {
            "openshift": True,
            "security": {"runAsUser": 0, "fsGroup": 0},
            "gateway": {"route": {"enabled": True}, "tls": {"secretName": "x"}},
        },
        "gateway.route.termination is edge and gateway.tls is given: the router would speak plain HTTP to a gateway that expects TLS; use reencrypt or passthrough.",
    ),
    "passthrough without TLS": (
        {
            "openshift": True,
            "security": {"runAsUser": 0, "fsGroup": 0},
            "gateway": {"route": {"enabled": True, "termination": "passthrough"}},
        },
        "gateway.route.termination is passthrough and the gateway has no certificate: name one in gateway.tls, or use edge.",
    ),
    "a fixed user on OpenShift": (
        {"openshift": True},
        "openshift is set and so is a user or group id: OpenShift assigns ids from each namespace's own range; set security.runAsUser and security.fsGroup to 0.",
    ),
    "an unreachable database": (
        {"store": POSTGRESQL},
        "networkPolicy.postgresql.peers is empty: gateways could not reach the database; list its peers, or set networkPolicy.enabled to false.",
    ),
    "a Redis of counters that cannot be reached": (
        {"gateway": {"counters": {"secretName": "serving-counters"}}},
        "networkPolicy.counters.peers is empty: gateways could not reach the Redis in which they count; list its peers, or set networkPolicy.enabled to false.",
    ),
    "an unreachable collector": (
        {"engine": {"settings": {"traces_endpoint": "http://collector:4318/v1/traces"}}},
        "networkPolicy.traces.peers is empty: no pod could reach the trace collector; list its peers, or set networkPolicy.enabled to false.",
    ),
    "unreachable issuers": (
        {"gateway": {"settings": {"oidc": [SIGN_ON]}}},
        "networkPolicy.issuers.peers is empty: gateways could not reach the issuers of single sign-on; list their peers, or set networkPolicy.enabled to false.",
    ),
    "a CA of issuers that is in no pod": (
        {
            "gateway": {"settings": {"oidc": [SIGN_ON | {"ca_file": "/etc/serving/issuer-ca/ca.crt"}]}},
            "networkPolicy": {"issuers": {"peers": [{"ipBlock": {"cidr": "10.0.0.12/32"}}]}},
        },
        "gateway.settings.oidc: the ca_file of https://sso.example.com is in no pod; name its Secret in gateway.issuerCa.secretName, and the file /etc/serving/issuer-ca/ca.crt.",
    ),
    "a client's secret that is in no pod": (
        {
            "gateway": {"settings": {"oidc": [SIGN_ON | {"client_id": "c", "client_secret_file": "/secret"}]}},
            "networkPolicy": {"issuers": {"peers": [{"ipBlock": {"cidr": "10.0.0.12/32"}}]}},
        },
        "gateway.settings.oidc: the client_secret_file of https://sso.example.com is in no pod; name its Secret in gateway.issuerClients.secretName, and the file /etc/serving/issuer-clients/KEY.",
    ),
    "a console that no browser reaches": (
        {"gateway": {"settings": {"console": {"port": 8090}}}},
        "networkPolicy.console is empty: no browser could reach the console on its own port; list its peers, or set networkPolicy.enabled to false.",
    ),
    "a console on the API's port": (
        {
            "gateway": {"settings": {"console": {"port": 8080}}},
            "networkPolicy": {"console": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]},
        },
        "gateway.settings.console.port is taken: the API has 8080 and the metrics have 9090; choose another.",
    ),
    "an unreachable API server": (
        {"networkPolicy": {"apiServer": {"cidrs": []}}},
        "networkPolicy.apiServer.cidrs is empty: the Job that creates the Secrets could not reach the API server; list its CIDRs, or create the Secrets yourself and name them in secrets.",
    ),
    "fetching onto one node of many": (
        {"modelVolume": {"hostPath": "/models"}, "engine": {"podSecurityExemptions": ["hostPath"]}},
        "modelVolume.hostPath is given and weights.job is fetch: a Job runs on one node and would fill or verify only that node; set weights.job to none.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_its_sentence(case: str) -> None:
    """An impossible combination is answered with this sentence and no other."""
    values, sentence = REFUSED[case]

    assert sentences(refusal(values)) == [sentence]


def test_a_bare_install_says_what_it_needs() -> None:
    """Without any values: where the images are, and that plain HTTP between the planes is a choice. Both at once."""
    bare = helm("template", "x", str(CHART))

    assert sentences(bare.stderr) == [
        "images.registry is empty: name the registry that holds the images, e.g. registry.example.com/gpt-oss-serving.",
        "Prompts and answers would cross the network between gateways and engines unencrypted: name a certificate in planeTls, or accept this with acknowledgePlaintextBetweenPlanes: true.",
    ]


@pytest.mark.parametrize("tls", [{"secretName": "planes"}, {"certManager": ISSUER}], ids=["secret", "cert-manager"])
def test_a_certificate_needs_no_acknowledgement(tls: Object) -> None:
    """With TLS between the planes nothing has to be accepted."""
    assert render({"acknowledgePlaintextBetweenPlanes": False, "planeTls": tls})


def test_what_clients_may_ask_for_has_aliases() -> None:
    """Any model of any cell and any adapter can be meant by an alias, and an alias by `helm test`."""
    law: Object = {"name": "law", "path": "/adapters/law"}
    one: Object = {"models": [{"name": "qwen3-32b", "lora": {"max_adapters": 1}, "adapters": [law]}]}
    other: Object = {"models": [{"name": "gpt-oss-20b"}]}

    assert render(
        {
            "cells": {"a": one, "b": other},
            "aliases": {"lawyer": "law", "gpt-4o-mini": "gpt-oss-20b"},
            "tests": {"model": "lawyer"},
        }
    )


def test_what_is_needed_is_enough() -> None:
    """The two things a bare install asks for are all it takes."""
    assert render(GIVEN)


def test_every_refusal_of_the_chart_is_tested() -> None:
    """As many sentences here as conditions in the template: an untested refusal may refuse nothing, or everything."""
    template = (CHART / "templates" / "_refusals.tpl").read_text()
    written = [
        line for line in template.splitlines() if line.endswith(".") and not line.startswith((" ", "{{/*", "What", "`"))
    ]
    patterns = {line.split("{{")[0] or line.split("}}")[1].split("{{")[0] for line in written}
    tested = [sentence for _, sentence in REFUSED.values()] + sentences(helm("template", "x", str(CHART)).stderr)

    assert len(written) > 15
    assert [pattern for pattern in patterns if not any(pattern in sentence for sentence in tested)] == []


def sentences(said: str) -> list[str]:
    """The sentences of a refusal, in order."""
    return [line.removeprefix("* ") for line in said.splitlines() if line.startswith("* ")]
