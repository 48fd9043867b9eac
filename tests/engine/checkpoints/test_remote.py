"""Weights from afar: fetched whole, gone on with after a break, and refused in one sentence when they cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.catalog import HubSource, Model, ObjectStoreSource
from serving.engine.checkpoints import store
from serving.errors import Refusal
from tests.engine.checkpoints.far_stores import FarStores, far_stores

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 100_000,
    "README.md": b"# pages are not weights",
    "original/model.safetensors": b"the same weights again",
}
WANTED = ["config.json", "manifest.json", "model.safetensors"]
HUB = HubSource(id="owner/model", revision="main")
SOURCES = (HUB, ObjectStoreSource(url="s3://bucket/model"))


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[FarStores]:
    """Both stores, and the environment in which a fetch Job asks them."""
    with far_stores(FILES) as server:
        for name, value in {
            "HF_ENDPOINT": server.url,
            "HF_HUB_OFFLINE": "0",
            "AWS_ENDPOINT": server.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "here",
        }.items():
            monkeypatch.setenv(name, value)
        yield server


def model(source: HubSource | ObjectStoreSource, **facts: object) -> Model:
    described = {"name": "m", "summary": "A test's.", "context_tokens": 8, "download_mib": 0, "disk_mib": 0}
    return Model.model_validate({"source": source, "license": "none", **described, **facts})


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_a_checkpoint_is_fetched_with_its_manifest(
    far: FarStores, tmp_path: Path, source: HubSource | ObjectStoreSource
) -> None:
    """Its files, and not what a repository keeps beside them; a second time nothing is asked for."""
    folder = store.ensure(model(source), tmp_path, print)
    assert (
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name in WANTED)
        == WANTED
    )
    assert (
        not (folder / "original").exists() and not (folder / "README.md").exists() and not (folder / ".cache").exists()
    )
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    before = dict(far.sent)
    assert store.ensure(model(source), tmp_path, print) == folder and far.sent == before
    assert store.verify(model(source), tmp_path) == folder


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_a_broken_download_goes_on_where_it_was(
    far: FarStores, tmp_path: Path, source: HubSource | ObjectStoreSource
) -> None:
    """60 GiB are not fetched again because the last file broke off; until then there is no checkpoint."""
    far.breaks_after = 1000
    with pytest.raises(Refusal):
        store.ensure(model(source), tmp_path, print)
    assert not store.folder_of(model(source), tmp_path).exists() and far.sent["config.json"] == 1
    far.breaks_after = None
    folder = store.ensure(model(source), tmp_path, print)
    assert far.sent["config.json"] == 1 and (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_weights_that_are_not_the_expected_ones_are_refused(
    far: FarStores, tmp_path: Path, source: HubSource | ObjectStoreSource
) -> None:
    """Whatever a mirror gives, the model's checksums have the last word."""
    with pytest.raises(Refusal, match="checksums"):
        store.ensure(model(source, checksums={"model.safetensors": "0" * 64}), tmp_path, print)


def test_another_revision_is_another_checkpoint(tmp_path: Path) -> None:
    """A fleet in the middle of an upgrade has both."""
    first, second = (model(HubSource(id="owner/model", revision=revision)) for revision in ("a", "b"))
    assert store.folder_of(first, tmp_path) != store.folder_of(second, tmp_path)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", "does not exist"),
        (404, "RevisionNotFound", "no revision main"),
        (403, "GatedRepo", "licence"),
        (500, "", "in trouble"),
    ],
)
def test_a_hub_that_refuses_is_told_in_one_sentence(
    far: FarStores, tmp_path: Path, status: int, code: str, words: str
) -> None:
    """What to do differs: a name, a licence, or patience."""
    far.status, far.error_code = status, code
    with pytest.raises(Refusal, match=words):
        store.ensure(model(HUB), tmp_path, print)


def test_nothing_is_asked_in_offline_mode(far: FarStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is set in every pod but the one that fetches."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Refusal, match="HF_HUB_OFFLINE"):
        store.ensure(model(HUB), tmp_path, print)
    assert not far.sent


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_a_far_store_that_is_away_is_told_in_one_sentence(
    far: FarStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: HubSource | ObjectStoreSource
) -> None:
    """The network, a proxy or an address: not a page of Python."""
    for name in ("HF_ENDPOINT", "AWS_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with pytest.raises(Refusal, match="check"):
        store.ensure(model(source), tmp_path, print)
