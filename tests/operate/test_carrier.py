"""The carrier asks the right programs for the right things, and leaves nothing half done. `make test-images` uses real ones."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import yaml

from serving.errors import Refusal
from serving.operate import bundle, carrier
from serving.operate.bundle import Contents, Operator

RENDERED = "kind: Deployment\nspec: {template: {spec: {containers: [{image: localhost/serving/gateway:1}]}}}\n"
DIGEST = "sha256:" + "d" * 64
#: Writes down how it was called, then does the least that its caller can see.
HELM = """#!/bin/sh
echo "helm $*" >> "$CALLS"
case "$1" in
  template) cat "$RENDERED" ;;
  package) echo chart > "${3#--destination=}/demo-0.1.0.tgz" ;;
  pull) echo operator > "${5#--destination=}/kuberay-operator-1.7.0.tgz" ;;
esac
"""
SKOPEO = """#!/bin/sh
echo "skopeo $*" >> "$CALLS"
for last; do :; done
file=${last#oci-archive:}
case "$last" in oci-archive:*) cp "$ARCHIVE" "${file%%:*}" ;; esac
"""
PODMAN = """#!/bin/sh
echo "podman $1 $2 $(basename "$3" | sed 's/^tmp.*/a copy/')" >> "$CALLS"
test -s "$3"
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a chart, values and a checkpoint, and programs that write down how they were called."""
    (tmp_path / "bin").mkdir()
    for name, script in (("helm", HELM), ("skopeo", SKOPEO), ("podman", PODMAN)):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in ("CALLS", "RENDERED", "ARCHIVE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    (tmp_path / "rendered").write_text(RENDERED)
    with tarfile.open(tmp_path / "archive", "w") as tar:
        index = json.dumps({"manifests": [{"digest": DIGEST}]}).encode()
        member = tarfile.TarInfo("index.json")
        member.size = len(index)
        tar.addfile(member, io.BytesIO(index))
    (tmp_path / "chart").mkdir()
    annotations = {bundle.OPERATOR_ANNOTATION: "1.7.0"}
    about = {"name": "demo", "version": "0.1.0", "appVersion": "0.1.0", "annotations": annotations}
    (tmp_path / "chart" / "Chart.yaml").write_text(yaml.safe_dump(about))
    (tmp_path / "chart" / "values.yaml").write_text("images: {registry: localhost/serving}\nmodels: [{name: tiny}]\n")
    (tmp_path / "site.yaml").write_text("gpu: h200\n")
    (tmp_path / "tiny-0123456789ab").mkdir()
    (tmp_path / "tiny-0123456789ab" / "config.json").write_text("{}")
    return tmp_path


def calls(world: Path) -> list[str]:
    return (world / "calls").read_text().splitlines()


def exported(world: Path, name: str = "bundle") -> Path:
    """A bundle of everything, made with those programs."""
    values = [world / "site.yaml"]
    wanted = carrier.needed(world / "chart", values, "")
    carrier.export(world / name, world / "chart", values, wanted, [world / "tiny-0123456789ab"])
    return world / name


def test_needed_is_what_helm_renders(world: Path) -> None:
    """Images come from the rendered objects, models from the chart's values with the user's over them."""
    (world / "site.yaml").write_text("models: [{name: other}]\n")

    found = carrier.needed(world / "chart", [world / "site.yaml"], "")

    assert found == Contents(
        ("localhost/serving/gateway:1", "localhost/serving/tools:0.1.0", "quay.io/kuberay/operator:v1.7.0"),
        ("other",),
        operator=Operator("quay.io/kuberay/operator:v1.7.0", "1.7.0"),
    )
    assert calls(world) == [f"helm template bundle {world}/chart --values={world}/site.yaml"]


def test_images_may_be_elsewhere_now(world: Path) -> None:
    """Values name the registry of the far side; the one of this side takes its place for the export alone."""
    found = carrier.needed(world / "chart", [world / "site.yaml"], None, "ghcr.io/somebody")

    assert found.images == ("ghcr.io/somebody/tools:0.1.0", "localhost/serving/gateway:1")  # as the stand-in renders it
    assert calls(world)[0].endswith("--set-string=images.registry=ghcr.io/somebody")


@pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
def test_export_is_whole_and_leaves_nothing_beside_it(world: Path, name: str) -> None:
    """Images, both charts, weights and values are in it and verify; no unfinished folder stays."""
    path = exported(world, name)

    with bundle.opened(path) as files:
        found = bundle.verify(files)
    assert [(image.reference, image.digest) for image in found.manifest.images] == [
        ("localhost/serving/gateway:1", DIGEST),
        ("localhost/serving/tools:0.1.0", DIGEST),
        ("quay.io/kuberay/operator:v1.7.0", DIGEST),
    ]
    assert found.manifest.charts == ("charts/demo-0.1.0.tgz", "charts/kuberay-operator-1.7.0.tgz")
    assert found.manifest.models == ("tiny-0123456789ab",)
    assert found.manifest.values == ("values/0-site.yaml",)
    assert [it.name for it in world.iterdir() if "unfinished" in it.name or "packing" in it.name] == []


def test_image_is_asked_for_by_digest_and_named_by_tag(world: Path) -> None:
    """skopeo takes a tag or a digest: the digest is what cannot move, the tag is what the archive is loaded as."""
    pinned = f"quay.io:443/kuberay/operator:v1.7.0@{DIGEST}"
    values = [world / "site.yaml"]

    carrier.export(world / "bundle", world / "chart", values, Contents((pinned,), ()), [])

    (copied,) = [line for line in calls(world) if line.startswith("skopeo")]
    assert copied.startswith("skopeo --override-os=linux --override-arch=amd64 copy --quiet ")
    assert f" docker://quay.io:443/kuberay/operator@{DIGEST} " in copied
    assert copied.endswith(".tar:quay.io:443/kuberay/operator:v1.7.0")


def test_given_chart_of_the_operator_is_not_fetched(world: Path) -> None:
    """Whoever has no way to KubeRay's site gives its chart as a file."""
    (world / "operator.tgz").write_text("given")
    values = [world / "site.yaml"]
    wanted = carrier.needed(world / "chart", values, "")

    carrier.export(world / "bundle", world / "chart", values, wanted, [], operator_chart=world / "operator.tgz")

    assert (world / "bundle/charts/operator.tgz").read_text() == "given"
    assert not any("helm pull" in line for line in calls(world))


def test_export_never_overwrites(world: Path) -> None:
    """A bundle that is there stays as it is."""
    exported(world)

    with pytest.raises(Refusal, match="exists already"):
        exported(world)


def test_failed_export_leaves_nothing(world: Path) -> None:
    """A program that fails ends in its own last words, and no half a bundle is left to be carried."""
    (world / "bin" / "skopeo").write_text("#!/bin/sh\necho noise >&2; echo >&2; echo manifest unknown >&2; exit 1\n")

    with pytest.raises(Refusal, match=r"^skopeo failed: manifest unknown$"):
        exported(world)
    assert {it.name for it in world.iterdir() if "bundle" in it.name} == set()


def test_what_the_chart_refuses_is_told_whole(world: Path) -> None:
    """Every sentence of it, and none of helm's advice to whoever wrote the chart."""
    said = "Error: execution error\\n\\nThese values cannot work:\\n* one.\\n* two.\\n\\n\\nUse --debug flag to render out invalid YAML"
    (world / "bin" / "helm").write_text(f"#!/bin/sh\nprintf '{said}\\n' >&2; exit 1\n")

    with pytest.raises(Refusal, match=r"^helm failed: These values cannot work: \* one\. \* two\.$"):
        exported(world)


@pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
def test_load_gives_every_image_and_every_model(world: Path, name: str) -> None:
    """Each archive goes to podman, from a folder where it lies; checkpoints appear whole under the names engines look for."""
    (world / "models").mkdir()
    with bundle.opened(exported(world, name)) as files:
        said = carrier.load(bundle.verify(files), "podman", world / "models")
        again = carrier.load(bundle.verify(files), "podman", world / "models")

    assert said[:3] == [
        "localhost/serving/gateway:1 is in podman",
        "localhost/serving/tools:0.1.0 is in podman",
        "quay.io/kuberay/operator:v1.7.0 is in podman",
    ]
    assert said[3].endswith("models/tiny-0123456789ab is there")
    assert again[3].endswith("was there already")
    assert (world / "models/tiny-0123456789ab/config.json").read_text() == "{}"
    assert len([line for line in calls(world) if line.startswith("podman load --input")]) == 6


def test_registry_gets_the_archive_as_it_is(world: Path) -> None:
    """The digest stays the same in the registry, so that values may name it, and the line says which."""
    with bundle.opened(exported(world)) as files:
        said = carrier.load(bundle.verify(files), "registry.example.com/ai", None)

    assert said[2] == f"registry.example.com/ai/kuberay/operator:v1.7.0@{DIGEST} holds quay.io/kuberay/operator:v1.7.0"
    pushed = [line for line in calls(world) if "docker://registry.example.com" in line]
    assert len(pushed) == 3
    assert all("--preserve-digests" in line for line in pushed)


@pytest.mark.parametrize("missing", ["helm", "skopeo"])
def test_missing_program_is_refused_in_a_sentence(world: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has to be installed, and what for, before anything is written."""
    (world / "bin" / missing).unlink()
    monkeypatch.setenv("PATH", f"{world / 'bin'}")

    with pytest.raises(Refusal, match=rf"^{missing} is not installed, and it .*: install it, then run this again\.$"):
        carrier.export(world / "bundle", world / "chart", [], Contents((), ()), [])
    assert not (world / "bundle").exists()


@pytest.mark.parametrize(
    ("name", "bare"),
    [("host:5000/a/b:1", "host:5000/a/b"), ("host:5000/a/b", "host:5000/a/b"), ("busybox:1", "busybox")],
)
def test_a_port_is_no_tag(name: str, bare: str) -> None:
    """Only what follows the last slash can be a tag."""
    assert carrier.without_tag(name) == bare
