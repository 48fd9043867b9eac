"""A draft model goes where its model goes: fetched beside it, and verified before an engine starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from serving import catalog
from serving.catalog import HubSource, Model, MountedSource
from serving.config import ModelSettings, Settings
from serving.engine.checkpoints import manifest
from serving.engine.command import EngineSpec
from serving.engine.replica import verify_checkpoints
from serving.engine.specs import engine_spec
from serving.errors import Refusal
from tests.engine.checkpoints.far_stores import FarStores, far_stores
from tests.stack.running import free_port

DRAFT = catalog.DRAFTS["gpt-oss-20b-eagle3"]
HEAD = {"config.json": b"{}", "model.safetensors": b"one layer"}


@pytest.fixture
def hub() -> Iterator[FarStores]:
    with far_stores(HEAD) as server:
        yield server


def own(volume: Path) -> Model:
    """A user's own model on a volume, for the CPU, with a draft of the catalogue's."""
    volume.mkdir(exist_ok=True)
    (volume / "config.json").write_text("{}")
    return Model(
        name="own",
        summary="A test's.",
        source=MountedSource(path=str(volume)),
        context_tokens=4096,
        download_mib=0,
        disk_mib=0,
        license="proprietary",
        draft=DRAFT.name,
    )


def serving(folder: Path, hub: FarStores, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command with settings that serve the own model with its draft."""
    served = {"name": "own", "speculation": {"method": "eagle3"}}
    content = {"own_models": [own(folder / "volume").model_dump(mode="json")], "models": [served]}
    (folder / "settings.yaml").write_text(yaml.safe_dump(content))
    online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "SERVING_HOME": str(folder / "home")}
    return subprocess.run(
        [sys.executable, "-m", "serving", "--settings", str(folder / "settings.yaml"), *arguments],
        env=os.environ | online | {"SERVING_ENGINE__MEMORY_SHARE": "0.01"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def head_in(home: Path) -> Path:
    """The draft's folder there."""
    (folder,) = (home / "models").glob(f"{DRAFT.name}-*")
    return folder


def test_a_model_is_fetched_with_its_draft(hub: FarStores, tmp_path: Path) -> None:
    """`serving models fetch` brings whole what the settings serve the model with, and prints the model's own folder."""
    done = serving(tmp_path, hub, "models", "fetch", "own")
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "volume")), done.stderr
    assert {it.name for it in head_in(tmp_path / "home").iterdir()} == {*HEAD, manifest.NAME}


def test_up_wants_the_draft_before_anything_starts(hub: FarStores, tmp_path: Path) -> None:
    """It fetches the draft itself: a hub without it is one sentence that names it."""
    assert isinstance(DRAFT.source, HubSource)
    hub.absent.add(DRAFT.source.id)
    done = serving(tmp_path, hub, "up", "--port", str(free_port()))
    assert done.returncode == 1 and f"{DRAFT.source} does not exist" in done.stderr, done.stderr


@pytest.mark.parametrize("damage", [b"another", None], ids=["altered", "missing"])
def test_up_verifies_the_draft_before_anything_starts(hub: FarStores, tmp_path: Path, damage: bytes | None) -> None:
    """A file of the draft that is not what was fetched is named, with what to do; no engine is started."""
    serving(tmp_path, hub, "models", "fetch", DRAFT.name)
    weights = head_in(tmp_path / "home") / "model.safetensors"
    _damage(weights, damage)
    done = serving(tmp_path, hub, "up", "--port", str(free_port()))
    assert done.returncode == 1 and "Ray" not in done.stderr, done.stderr
    assert (
        f"{weights} is not what was built" in done.stderr and f"delete {weights.parent} and start again" in done.stderr
    )


@pytest.mark.parametrize("damage", [b"another", None], ids=["altered", "missing"])
@pytest.mark.parametrize("which", ["the model", "its draft"])
def test_an_engine_loads_neither_model_nor_draft_that_differs(tmp_path: Path, which: str, damage: bytes | None) -> None:
    """In a cluster a replica compares both folders before its engine's first process, again once a file has changed."""
    spec = speculating(tmp_path)
    assert verify_checkpoints(spec) == []
    weights = Path((spec.draft or "") if which == "its draft" else spec.checkpoint) / "model.safetensors"
    _damage(weights, damage)
    with pytest.raises(Refusal, match=rf"{weights} is not what was built .*: delete {weights.parent} and start again"):
        verify_checkpoints(spec)


def test_an_engine_without_its_draft_is_refused(tmp_path: Path) -> None:
    """A folder that was never fetched is named, instead of vLLM's search for it at a hub that no pod reaches."""
    spec = speculating(tmp_path)
    Path(spec.draft or "").rename(tmp_path / "elsewhere")
    with pytest.raises(Refusal, match=rf"no folder {spec.draft} here: fetch"):
        verify_checkpoints(spec)


def speculating(folder: Path) -> EngineSpec:
    """The spec of an engine with EAGLE3, both of whose checkpoints are whole."""
    wanted = ModelSettings.model_validate(
        {"name": "gpt-oss-20b", "profile": "balanced", "speculation": {"method": "eagle3"}}
    )
    settings = Settings(home=folder / "home")
    spec = engine_spec(catalog.find("gpt-oss-20b"), wanted, folder / "model", settings, folder / "secret")
    assert spec.draft
    for checkpoint in (Path(spec.checkpoint), Path(spec.draft)):
        checkpoint.mkdir(parents=True)
        for name, content in HEAD.items():
            (checkpoint / name).write_bytes(content)
        manifest.write(checkpoint, "m", "recipe")
    return spec


def _damage(file: Path, damage: bytes | None) -> None:
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
