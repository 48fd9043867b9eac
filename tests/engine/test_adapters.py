"""An engine's shelf holds what the settings name, checked and copied, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from serving import catalog
from serving.catalog import LoraLimits
from serving.config import AdapterSettings, ModelSettings, Settings
from serving.engine import specs
from serving.engine.adapters import CONFIG, WEIGHTS, Shelf, base_of, examine, examine_all
from serving.engine.command import EngineSpec
from serving.engine.command import environment as environment_of
from serving.errors import Refusal
from tests import peft

LIMITS = LoraLimits(max_adapters=1, max_rank=16, max_cpu_adapters=1)
SMOLLM2 = "smollm2-135m-instruct"
#: Layers of the base model here, and of its adapters.
LAYERS = 2


def written(folder: Path, seed: int, **shape: int) -> AdapterSettings:
    return peft.write(folder, seed, layers=LAYERS, **shape)


def halved(folder: Path) -> None:
    """The second factors zero, as before any training."""
    tensors = load_file(folder / WEIGHTS)
    zeros = {name: np.zeros_like(it) for name, it in tensors.items() if "lora_B" in name}
    save_file(tensors | zeros, folder / WEIGHTS)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    (tmp_path / "shelf").mkdir()
    peft.write_base(tmp_path / "base", LAYERS)
    return Shelf(tmp_path / "shelf", str(tmp_path / "base"), LIMITS)


def found(folder: Path, name: str) -> bool:
    """Does vLLM's own resolver find it?"""
    from vllm.plugins.lora_resolvers.filesystem_resolver import FilesystemResolver

    base = str(folder.parent / "base")
    return asyncio.run(FilesystemResolver(str(folder)).resolve_lora(base, name)) is not None


def test_vllms_resolver_finds_what_is_offered_and_only_that(shelf: Shelf, tmp_path: Path) -> None:
    """On the shelf a name is found; off it, never put there, or leading out of it, it is not."""
    first, second = (written(tmp_path / name, seed) for seed, name in enumerate(("first", "second")))
    shelf.offer(first)
    shelf.offer(second)
    offered = shelf.names
    assert offered == ("first", "second") and found(tmp_path / "shelf", "first")
    assert shelf.withdraw((second,)) == ["first"]
    names = ("first", "third", "../first", str(tmp_path / "first"), ".", "second/../../first")
    assert [name for name in names if found(tmp_path / "shelf", name)] == [] and found(tmp_path / "shelf", "second")
    assert shelf.names == ("second",)


def test_what_was_offered_stays_readable(shelf: Shelf, tmp_path: Path) -> None:
    """vLLM reads an evicted adapter again and dies without it: neither a withdrawal nor the source's end takes it away."""
    adapter = written(tmp_path / "one", 1)
    weights = (tmp_path / "one" / WEIGHTS).read_bytes()
    shelf.offer(adapter)
    for name in (CONFIG, WEIGHTS):
        (tmp_path / "one" / name).unlink()
    shelf.withdraw(())
    assert (tmp_path / "shelf" / "one" / WEIGHTS).read_bytes() == weights
    assert json.loads((tmp_path / "shelf" / "one" / CONFIG).read_text())["r"] == 8


def test_a_withdrawn_adapter_may_come_back_as_it_was(shelf: Shelf, tmp_path: Path) -> None:
    """The same files under the same name are the same adapter; other files are not, for the engine remembers the old."""
    adapter = written(tmp_path / "one", 1)
    shelf.offer(adapter)
    shelf.withdraw(())
    shelf.offer(adapter)
    assert found(tmp_path / "shelf", "one")
    written(tmp_path / "one", 2)
    shelf.withdraw(())
    with pytest.raises(Refusal, match=r"'one' .* give it a new name"):
        shelf.offer(adapter)
    assert shelf.names == () and not found(tmp_path / "shelf", "one")
    assert [path.name for path in (tmp_path / "shelf").iterdir()] == ["one"]


def described(**changes: object) -> Callable[[Path], None]:
    """Changes in an adapter's description."""

    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | changes))

    return change


def renamed(part: str, by: str) -> Callable[[Path], None]:
    """Another name for each tensor that has this in its own."""
    return lambda folder: peft.rename(folder, lambda name: name.replace(part, by))


def linked_out(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere.safetensors")


def widened(folder: Path) -> None:
    """Weights of a larger rank than the description's."""
    description = (folder / CONFIG).read_text()
    written(folder, 3, rank=32)
    (folder / CONFIG).write_text(description)


def cut(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 5000)


UNSOUND: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "adapter_model.safetensors is not in"),
    "no description": (lambda folder: (folder / CONFIG).unlink(), "adapter_config.json is not in"),
    "a link out of the folder": (linked_out, "links out of it"),
    "weights cut short": (cut, "damaged or incomplete"),
    "a description that is no JSON": (lambda folder: (folder / CONFIG).write_text("{"), "no JSON object"),
    "a huge description": (lambda folder: (folder / CONFIG).write_text(" " * 2**21 + "{}"), "or too large"),
    "another method": (described(peft_type="IA3"), "not a LoRA"),
    "too large a rank": (described(r=32), "rank is 32 and the engine has room for 16"),
    "too large a rank for some": (described(rank_pattern={"q_proj": 64}), "rank is 64"),
    "weights of a larger rank": (widened, "rank is 32"),
    "weights of another model": (
        lambda folder: written(folder, 3, narrower_by=64),
        "is 1472 wide and this model's is 1536",
    ),
    "weights of a whole model": (
        lambda folder: shutil.copy(folder.parent / "base" / "model.safetensors", folder / WEIGHTS),
        "no LoRA weights",
    ),
    "no rank": (described(r=None), "names no rank"),
    "a pattern that is none": (described(rank_pattern={"(": 8}), "names no rank"),
    "a pattern that is none after others": (described(rank_pattern={"(?i)q_proj": 8}), "names no rank"),
    "what vLLM does not implement": (described(use_dora=True), "asks for DoRA"),
    "layers that the model lacks": (
        renamed("layers.1.", "layers.100."),
        r"base_model.model.model.layers.100.mlp.down_proj.lora_A.weight fits no module of this model",
    ),
    "the names of another wrapper": (
        renamed(".model.layers.", ".language_model.model.layers."),
        r"language_model.model.layers.0.mlp.down_proj.lora_A.weight fits no module",
    ),
    "the names of another architecture": (
        renamed(".model.layers.", ".transformer.layers."),
        r"transformer.layers.0.mlp.down_proj.lora_A.weight fits no module",
    ),
}


@pytest.mark.parametrize(("spoil", "said"), UNSOUND.values(), ids=UNSOUND.keys())
def test_an_unsound_adapter_is_refused_and_leaves_nothing(
    shelf: Shelf, tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    """One sentence that names the adapter; the shelf stays as it was, and the next adapter is taken."""
    good, bad = written(tmp_path / "good", 1), written(tmp_path / "bad", 2)
    spoil(tmp_path / "bad")
    with pytest.raises(Refusal, match=f"'bad' cannot be loaded: .*{said}"):
        shelf.offer(bad)
    shelf.offer(good)
    assert shelf.names == ("good",) and [path.name for path in (tmp_path / "shelf").iterdir()] == ["good"]


def test_before_an_engine_starts_the_first_unsound_adapter_is_refused(tmp_path: Path) -> None:
    """All of a model's adapters are compared with its checkpoint, and one that holds no tensors says so."""
    peft.write_base(tmp_path / "base", LAYERS)
    good, bad = written(tmp_path / "good", 1), written(tmp_path / "bad", 2)
    examine_all([good, bad], LIMITS, tmp_path / "base")
    examine_all([good, bad], LIMITS, tmp_path / "still to be fetched")
    renamed("layers.0.", "layers.99.")(tmp_path / "bad")
    with pytest.raises(Refusal, match=r"'bad' cannot be loaded: its tensor \S+layers.99\S+ fits no module"):
        examine_all([good, bad], LIMITS, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(Refusal, match="no safetensors file"):
        examine_all([good], LIMITS, tmp_path / "base")


@pytest.mark.parametrize(
    ("change", "is_zero"),
    [
        (lambda folder: None, False),
        (halved, True),
        (described(lora_alpha=0), True),
    ],
    ids=["trained", "second factors zero", "scaled to nothing"],
)
def test_an_adapter_that_can_change_nothing_is_known(
    shelf: Shelf, tmp_path: Path, change: Callable[[Path], None], is_zero: bool
) -> None:
    """By its weights, and not by what it says."""
    adapter = written(tmp_path / "one", 1)
    change(tmp_path / "one")
    shelf.offer(adapter)
    assert shelf.is_zero("one") is is_zero


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    """Mounted volumes publish their files through links to a dated folder beside them."""
    adapter = written(tmp_path / "one", 1)
    (tmp_path / "one" / "..today").mkdir()
    (tmp_path / "one" / WEIGHTS).rename(tmp_path / "one" / "..today" / WEIGHTS)
    (tmp_path / "one" / WEIGHTS).symlink_to(Path("..today") / WEIGHTS)
    peft.write_base(tmp_path / "base", LAYERS)
    assert examine(adapter, LIMITS, base_of(tmp_path / "base"))["r"] == 8


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/a", "a b", "a\n", "-a", "x" * 97])
def test_a_name_that_could_be_a_path_is_refused(name: str) -> None:
    """vLLM joins the name to a folder: only plain names get that far."""
    with pytest.raises(ValidationError):
        AdapterSettings(name=name, path="/adapters/one")


def test_names_are_unique_over_models_and_adapters() -> None:
    """A client's `model` means one thing."""
    one = AdapterSettings(name="one", path="/adapters/one")
    clashes = (
        (ModelSettings(name="a", adapters=(one,)), ModelSettings(name="b", adapters=(one,))),
        (ModelSettings(name="a", adapters=(one,)), ModelSettings(name="one")),
    )
    for models in clashes:
        with pytest.raises(ValidationError, match="named twice: one"):
            Settings(models=models)


def engine(model: str, folder: Path, settings: Settings | None = None, **wanted: object) -> EngineSpec:
    """The engine of `model` as settings describe it."""
    described = ModelSettings.model_validate({"name": model} | wanted)
    return specs.engine_spec(catalog.find(model), described, folder, settings or Settings(), folder / "secret")


REFUSED: dict[str, tuple[str, dict[str, object], dict[str, object], str]] = {
    "adapters without room": (SMOLLM2, {"adapters": [{"name": "a", "path": "/a"}]}, {}, "no room for them: set its `lora`"),
    "a model without limits": ("all-minilm-l6-v2", {"lora": {}}, {}, "no adapter limits, so it can load none"),
    "more in a batch": (SMOLLM2, {"lora": {"max_adapters": 5}}, {}, "`lora.max_adapters` .* is 5 and the catalogue allows 4"),
    "a larger rank": (SMOLLM2, {"lora": {"max_rank": 128}}, {}, "`lora.max_rank` .* is 128 and the catalogue allows 64"),
    "more in memory": (SMOLLM2, {"lora": {"max_cpu_adapters": 99}}, {}, "`lora.max_cpu_adapters`"),
    "several front ends": (SMOLLM2, {"lora": {}}, {"api_servers": 2}, "one HTTP front end .*vLLM 0.32"),
    "gpt-oss on a CPU": ("tiny-gpt-oss", {"lora": {}}, {}, "crash its engine on a CPU"),
    "an engine over nodes": (
        "gpt-oss-120b",
        {"profile": "dp8-ep", "lora": {"max_adapters": 1}},
        {"gpus_per_node": 4},
        "over 2 nodes loads no adapters",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "wanted", "engines", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_room_that_no_engine_can_keep_is_refused(
    model: str, wanted: dict[str, object], engines: dict[str, object], said: str, tmp_path: Path
) -> None:
    """Before anything starts, in a sentence."""
    with pytest.raises(Refusal, match=said):
        engine(model, tmp_path, Settings.model_validate({"engine": engines}), **wanted)


def test_an_engine_without_room_for_adapters_has_no_way_to_load_any(tmp_path: Path) -> None:
    """Neither flags nor the variables that let vLLM look for unknown models; with room, both, and its own shelf."""
    bare, roomy = engine(SMOLLM2, tmp_path), engine(SMOLLM2, tmp_path, lora={"max_adapters": 1, "max_rank": 8})
    environments = [environment_of(it, "1:2:3", tmp_path / "scratch", {}) for it in (bare, roomy)]
    assert "--enable-lora" not in bare.flags and "--enable-lora" in roomy.flags
    assert not any("LORA" in name for name in environments[0])
    assert environments[1]["VLLM_LORA_RESOLVER_CACHE_DIR"] == str(tmp_path / "scratch" / "adapters")
    assert environments[1]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_adapters_are_no_part_of_an_engine(tmp_path: Path) -> None:
    """Which adapters there are changes live; how much room there is restarts the engine."""
    from serving.engine.command import version

    one = {"name": "one", "path": "/adapters/one"}
    bare, stocked = (engine(SMOLLM2, tmp_path, lora={}, adapters=them) for them in ([], [one]))
    assert version(bare) == version(stocked) != version(engine(SMOLLM2, tmp_path, lora={"max_rank": 8}))
