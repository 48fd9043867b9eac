"""A bundle holds what the chart needs, all of it and nothing else, and says so when it does not."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from serving.errors import Refusal
from serving.operate import bundle
from serving.operate.bundle import Contents, Image, Manifest, Operator

CHART = {"version": "0.1.0", "appVersion": "0.1.0", "annotations": {bundle.OPERATOR_ANNOTATION: "1.7.0"}}
VALUES = {"images": {"registry": "registry.example.com/serving/"}, "models": [{"name": "gpt-oss-120b"}]}
RENDERED = [
    None,
    {
        "kind": "Deployment",
        "spec": {"template": {"spec": {"containers": [{"image": "registry.example.com/gateway:1"}]}}},
    },
    {
        "kind": "RayService",
        "spec": {
            "rayClusterConfig": {"workerGroupSpecs": [{"template": {"spec": {"initContainers": [{"image": "e:2"}]}}}]}
        },
    },
    {"kind": "ConfigMap", "data": {"image": {"not": "an image"}, "settings": "image: a text that only looks like one"}},
]
MANIFEST = Manifest(
    format=bundle.FORMAT,
    version="0.1.0",
    images=(Image("localhost/gateway:0.1.0", "images/gateway.tar", "sha256:" + "a" * 64),),
    charts=("charts/gpt-oss-serving-0.1.0.tgz",),
    models=("tiny-0123456789ab",),
    values=("values/0-values.yaml",),
)
FILES = {
    "images/gateway.tar": b"layers",
    "charts/gpt-oss-serving-0.1.0.tgz": b"chart",
    "models/tiny-0123456789ab/config.json": b"{}",
    "models/tiny-0123456789ab/model.safetensors": b"weights",
    "values/0-values.yaml": b"gpu: h100\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole bundle."""
    path = tmp_path / "bundle"
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    bundle.seal(path, MANIFEST)
    return path


def packed(folder: Path) -> Path:
    """The same bundle as a tar."""
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        for name in sorted(bundle.Folder(folder).names()):
            tar.add(folder / name, name)
    return path


def verified(path: Path, expected: str | None = None) -> bundle.Verified:
    with bundle.opened(path) as files:
        return bundle.verify(files, expected)


def test_contents_are_every_image_the_objects_name() -> None:
    """Images are found in containers and init containers at any depth; the operator and the tools come with them."""
    found = bundle.contents(CHART, RENDERED, VALUES)

    assert found == Contents(
        images=(
            "e:2", "quay.io/kuberay/operator:v1.7.0", "registry.example.com/gateway:1",
            "registry.example.com/serving/tools:0.1.0",
        ),
        models=("gpt-oss-120b",),
        operator=Operator("quay.io/kuberay/operator:v1.7.0", "1.7.0"),
    )  # fmt: skip


def test_operator_is_left_out_or_replaced_by_choice_alone() -> None:
    """A cluster that has its operator needs none; a mirrored or pinned one takes the place of KubeRay's own name."""
    without = bundle.contents(CHART, RENDERED, VALUES, operator=None)
    mirrored = bundle.contents(CHART, RENDERED, VALUES, operator="mirror.example.com/operator@sha256:" + "1" * 64)

    assert without.operator is None
    assert not any("operator" in image for image in without.images)
    assert "mirror.example.com/operator@sha256:" + "1" * 64 in mirrored.images
    assert "quay.io/kuberay/operator:v1.7.0" not in mirrored.images


@pytest.mark.parametrize(
    ("chart", "rendered", "said"),
    [(CHART, [], "render no image"), ({"version": "1", "appVersion": "1"}, RENDERED, "has no annotation")],
)
def test_unknown_contents_are_refused(chart: dict[str, object], rendered: list[object], said: str) -> None:
    """A folder that is not the chart, and a chart that names no operator, give no bundle with a hole in it."""
    with pytest.raises(Refusal, match=said):
        bundle.contents(chart, rendered, VALUES)


def test_models_of_every_cell_are_carried() -> None:
    """A model that only one cell serves is needed too, and each is named once."""
    values = {"models": [{"name": "b"}], "cells": {"a": {}, "b": {"models": [{"name": "a"}, {"name": "b"}]}, "c": None}}

    assert bundle.models_of(values) == ("a", "b")


def test_what_guesses_tokens_is_carried_with_its_model() -> None:
    """The draft of a model that speculates with one is a checkpoint more; repetitions need none."""
    entries = [
        {"name": f"gpt-oss-{size}", "speculation": {"method": how}}
        for size, how in (("120b", "eagle3"), ("20b", "ngram"))
    ]
    found = bundle.contents(CHART, RENDERED, {"models": entries})
    assert found.models == ("gpt-oss-120b", "gpt-oss-120b-eagle3", "gpt-oss-20b")


@pytest.mark.parametrize(
    ("reference", "there"),
    [
        ("quay.io/kuberay/operator:v1.7.0@sha256:" + "1" * 64, "r.example.com/kuberay/operator:v1.7.0"),
        ("registry.example.com:5000/a/gateway@sha256:" + "1" * 64, "r.example.com/a/gateway:pinned"),
        ("localhost/gpt-oss-serving/tools:0.1.0", "r.example.com/gpt-oss-serving/tools:0.1.0"),
        ("library/busybox:1", "r.example.com/library/busybox:1"),
        ("busybox:1", "r.example.com/busybox:1"),
    ],
)
def test_reference_in_another_registry(reference: str, there: str) -> None:
    """Only the host changes, so that `images.registry` is the one value to set; a digest becomes a tag or stays a tag."""
    assert bundle.moved(reference, "r.example.com/") == there


def test_two_images_never_share_a_file() -> None:
    """The same name in two registries, or under two digests, are two archives."""
    references = ["a.io/gateway:1", "b.io/gateway:1", "a.io/gateway:1@sha256:" + "1" * 64, "a.io/x/gateway:1"]

    assert len({bundle.file_of(reference) for reference in references}) == len(references)


@pytest.mark.parametrize("form", [lambda it: it, packed], ids=["folder", "tar"])
def test_whole_bundle_is_accepted(folder: Path, form: Callable[[Path], Path]) -> None:
    """As a folder and as a tar, with and without the checksum that was sent ahead."""
    found = verified(form(folder))

    assert found.manifest == MANIFEST
    assert verified(form(folder), "sha256:" + found.sha256).sha256 == found.sha256


def test_checksums_are_those_that_sha256sum_reads(folder: Path) -> None:
    """Whoever has no Python compares with `sha256sum --check SHA256SUMS`: the manifest and every file are listed."""
    lines = (folder / bundle.SUMS).read_text().splitlines()

    assert f"{hashlib.sha256(b'weights').hexdigest()}  models/tiny-0123456789ab/model.safetensors" in lines
    assert {line.split("  ", 1)[1] for line in lines} == {*FILES, bundle.MANIFEST}


def damage(folder: Path) -> None:
    (folder / "images/gateway.tar").write_bytes(b"layer5")


def lose(folder: Path) -> None:
    (folder / "models/tiny-0123456789ab/model.safetensors").unlink()


def add(folder: Path) -> None:
    (folder / "images/backdoor.tar").write_bytes(b"!")


def lose_sums(folder: Path) -> None:
    (folder / bundle.SUMS).unlink()


def lose_manifest(folder: Path) -> None:
    (folder / bundle.MANIFEST).unlink()


def rewrite_manifest(folder: Path) -> None:
    """Damage that a text editor does: still JSON, another content."""
    text = (folder / bundle.MANIFEST).read_text()
    (folder / bundle.MANIFEST).write_text(text.replace("0.1.0", "0.2.0"))


def cut_sums(folder: Path) -> None:
    text = (folder / bundle.SUMS).read_text()
    (folder / bundle.SUMS).write_text(text[: len(text) // 2 - 40])


@pytest.mark.parametrize("form", [lambda it: it, packed], ids=["folder", "tar"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damage, r"images/gateway\.tar is damaged"),
        (lose, r"model\.safetensors is missing"),
        (add, r"images/backdoor\.tar is not part of this bundle"),
        (lose_sums, r"it has no SHA256SUMS"),
        (lose_manifest, r"it has no manifest\.json"),
        (rewrite_manifest, r"manifest\.json is damaged"),
        (cut_sums, r"SHA256SUMS is damaged at the line"),
    ],
)
def test_changed_bundle_is_refused(
    folder: Path, form: Callable[[Path], Path], change: Callable[[Path], None], said: str
) -> None:
    """Damaged, missing and additional files are each refused in a sentence that names the first."""
    change(folder)

    with pytest.raises(Refusal, match=said):
        verified(form(folder))


def test_another_whole_bundle_is_refused_by_its_checksum(folder: Path) -> None:
    """Whoever replaces files and seals the bundle anew is found by the checksum that came another way."""
    expected = verified(folder).sha256
    damage(folder)
    (folder / bundle.SUMS).unlink()
    bundle.seal(folder, MANIFEST)

    assert verified(folder).manifest == MANIFEST
    with pytest.raises(Refusal, match="it is another bundle"):
        verified(folder, expected)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (msgspec.structs.replace(MANIFEST, format=2), "format 2 and this command reads 1"),
        (msgspec.structs.replace(MANIFEST, charts=("charts/other.tgz",)), r"names charts/other\.tgz"),
        (msgspec.structs.replace(MANIFEST, models=("../elsewhere",)), r"names models/\.\./elsewhere"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(folder: Path, manifest: Manifest, said: str) -> None:
    """Another format, a file that is not there and a model outside the bundle are refused, checksums or not."""
    (folder / bundle.SUMS).unlink()
    bundle.seal(folder, manifest)

    with pytest.raises(Refusal, match=said):
        verified(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd"])
def test_archive_cannot_reach_outside(folder: Path, name: str) -> None:
    """Names that lead out of the archive are refused before anything is read."""
    with tarfile.open(packed(folder), "a") as tar:
        tar.addfile(tarfile.TarInfo(name))

    with pytest.raises(Refusal, match="no plain file inside it"):
        verified(folder.with_suffix(".tar"))


def test_links_are_refused(folder: Path) -> None:
    """A link would be measured as what it points to, which is not what was sent."""
    (folder / "images/gateway.tar").unlink()
    (folder / "images/gateway.tar").symlink_to("/etc/hostname")

    with pytest.raises(Refusal, match="neither a file nor a folder"):
        verified(folder)


def test_no_bundle_is_refused(tmp_path: Path) -> None:
    """Nothing there, and a tar that was cut off, are sentences too."""
    with pytest.raises(Refusal, match="There is no bundle"):
        verified(tmp_path / "nothing.tar")
    (tmp_path / "cut.tar").write_bytes(b"\x01" * 700)
    with pytest.raises(Refusal, match="cut off, or no bundle"):
        verified(tmp_path / "cut.tar")
