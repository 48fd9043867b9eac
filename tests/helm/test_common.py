"""What platform teams put on every object and beside the chart's own: commonLabels, commonAnnotations, extraObjects."""

from __future__ import annotations

import copy
import re

import pytest

from tests.helm.cells import CHART, Object, Refused, refusal, render
from tests.helm.chart import EXAMPLES, helm, named, pods
from tests.helm.test_refusals import sentences

LABELS: Object = {"example.com/cost-center": "4711"}
ANNOTATIONS: Object = {"example.com/owner": "ml-platform@example.com"}
COMMON: Object = {"commonLabels": LABELS, "commonAnnotations": ANNOTATIONS}


@pytest.mark.parametrize("name", ["production", "openshift"])
def test_every_object_and_every_pod_has_the_common_labels(name: str) -> None:
    """On every object, hooks and tests too, and on every pod, those that KubeRay creates included."""
    objects = render(COMMON, EXAMPLES[name])

    assert [it["metadata"]["name"] for it in objects if not it["metadata"]["labels"].items() >= LABELS.items()] == []
    assert [pod.owner for pod in pods(objects) if not pod.labels.items() >= LABELS.items()] == []


def test_every_object_has_the_common_annotations() -> None:
    """On every object, beside its own; not on pods that a Deployment, a Job or a cell makes."""
    objects = render(COMMON, EXAMPLES["production"])
    (deployment,) = [it for it in objects if it["kind"] == "Deployment"]

    for it in objects:
        assert it["metadata"]["annotations"].items() >= ANNOTATIONS.items(), it["metadata"]["name"]
    assert deployment["spec"]["template"]["metadata"]["annotations"].keys() == {"checksum/settings"}


def test_nothing_else_changes() -> None:
    """Selectors, own labels and specs are what they are without common labels. A Job whose pod changes has another name."""
    plain, common = (render(values, EXAMPLES["production"]) for values in ({}, COMMON))

    assert [_without(it) for it in common] == [_without(it) for it in plain]


def test_an_objects_own_annotation_wins() -> None:
    """commonAnnotations lose to what the chart derives and to what an object's own value says."""
    ingress: Object = {"enabled": True, "host": "llm.example.com", "annotations": {"team": "api"}}
    common: Object = {"team": "platform", "nginx.ingress.kubernetes.io/proxy-buffering": "on"}
    objects = render({"gateway": {"ingress": ingress}, "commonAnnotations": common})

    found = named(objects, "Ingress", "test-gpt-oss-serving")["metadata"]["annotations"]
    assert (found["team"], found["nginx.ingress.kubernetes.io/proxy-buffering"]) == ("api", "off")


def test_a_manifest_beside_the_charts_own() -> None:
    """It gets the common labels and annotations under its own; template expressions and numbers in it survive."""
    extra: Object = {
        "apiVersion": "example.com/v1",
        "kind": "Backup",
        "metadata": {"name": '{{ include "gpt-oss-serving.fullname" $ }}-backup', "labels": {"tier": "gold"}},
        "spec": {"bytes": 5000000000, "model": "{{ (first .Values.models).name }}", "text": "{{ `{{ kept }}` }}"},
    }

    found = named(render(COMMON | {"extraObjects": [extra]}), "Backup", "test-gpt-oss-serving-backup")
    assert found["metadata"]["labels"] == {"tier": "gold"} | LABELS
    assert found["metadata"]["annotations"] == ANNOTATIONS
    assert found["spec"] == {"bytes": 5000000000, "model": "gpt-oss-120b", "text": "{{ kept }}"}


def test_a_template_beside_the_charts_own() -> None:
    """A string is taken as it is, several documents too; the chart's named templates can be used in it."""
    text = """
apiVersion: v1
kind: ConfigMap
metadata:
  name: one
  labels:
    {{- include "gpt-oss-serving.labels" (dict "root" $) | nindent 4 }}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: two}
"""
    objects = render(COMMON | {"extraObjects": [text]})

    assert named(objects, "ConfigMap", "one")["metadata"]["labels"].items() >= LABELS.items()
    assert named(objects, "ConfigMap", "two")["metadata"] == {"name": "two"}


CLASHES: dict[str, tuple[Object, str]] = {
    "a selector's label": (
        {"commonLabels": {"app.kubernetes.io/name": "llm"}},
        "commonLabels has app.kubernetes.io/name, which the chart or KubeRay sets itself: leave it out, or use a label of your own.",
    ),
    "a label of some objects": (
        {"commonLabels": {"gpt-oss-serving/cell": "a"}},
        "commonLabels has gpt-oss-serving/cell, which the chart or KubeRay sets itself: leave it out, or use a label of your own.",
    ),
    "a label of monitoring": (
        {"monitoring": {"serviceMonitor": {"labels": {"app.kubernetes.io/part-of": "x"}}}},
        "monitoring.serviceMonitor.labels has app.kubernetes.io/part-of, which the chart or KubeRay sets itself: leave it out, or use a label of your own.",
    ),
    "a hook of everything": (
        {"commonAnnotations": {"helm.sh/hook": "pre-install"}},
        "commonAnnotations has helm.sh/hook, which Helm interprets itself: on every object it would change installs, upgrades and uninstalls; leave it out.",
    ),
    "an object without a name": (
        {"extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}}]},
        "extraObjects[0] has no metadata.name: name the object.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CLASHES)
def test_a_clash_is_refused_with_its_sentence(case: str) -> None:
    """A common label never replaces one of the chart's: it is refused, not dropped."""
    values, sentence = CLASHES[case]

    assert sentences(refusal(values)) == [sentence]


@pytest.mark.parametrize(
    "values",
    [
        {"commonLabels": {"team": "two words"}},
        {"commonLabels": {"Example.com/team": "x"}},
        {"commonLabels": {"cost-center": 4711}},
        {"commonAnnotations": {"cost-center": 4711}},
        {"extraObjects": [{"kind": "ConfigMap", "metadata": {"name": "x"}}]},
        {"extraObjects": [""]},
    ],
    ids=str,
)
def test_helm_refuses_what_kubernetes_would(values: Object) -> None:
    """A label that is none, a number where text is meant, and a manifest without a kind do not pass the schema."""
    with pytest.raises(Refused, match=next(iter(values))):
        render(values)


def test_disabled_it_renders_nothing() -> None:
    """`enabled: false` leaves no object, extra ones included, asks for no value, and the notes say so."""
    extra = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}
    whole: Object = {"enabled": False, "extraObjects": [extra]}
    bare = helm("install", "test", str(CHART), "--dry-run=client", values=whole)

    assert render(whole, EXAMPLES["production"]) == render(whole, EXAMPLES["openshift"]) == []
    assert bare.returncode == 0 and "kind:" not in bare.stdout
    assert "enabled is false: gpt-oss-serving installs nothing." in bare.stdout


def _without(it: Object) -> Object:
    """The object as it is without common labels and annotations."""
    own = _stripped(copy.deepcopy(it))
    assert isinstance(own, dict)
    if it["kind"] == "Job":
        own["metadata"]["name"] = re.sub(r"-[0-9a-f]{8}$", "", it["metadata"]["name"])
    return own


def _stripped(node: object) -> object:
    if isinstance(node, list):
        return [_stripped(it) for it in node]
    if not isinstance(node, dict):
        return node
    if isinstance(metadata := node.get("metadata"), dict):
        for key, common in {"labels": LABELS, "annotations": ANNOTATIONS}.items():
            kept = {k: v for k, v in metadata.pop(key, {}).items() if k not in common}
            node["metadata"] = metadata = metadata | ({key: kept} if kept else {})
    return {key: _stripped(it) for key, it in node.items()}
