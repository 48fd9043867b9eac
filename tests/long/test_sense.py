"""Wrong engines never serve: each fault that leaves an engine fluent is seen by what it makes of a known text.

Real vLLM servers, without Ray around them. `pytest -s` prints the scores.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from serving import catalog, secret
from serving.catalog import Model
from serving.config import ModelSettings, Settings
from serving.engine import sense
from serving.engine.checkpoints import store as checkpoints
from serving.engine.engine import Engine, Senseless, running
from serving.engine.specs import engine_spec
from serving.wire import SENSELESS, ReplicaReport, ReplicaState
from tests.engine.noisy_rank import known_to_vllm
from tests.stack.conftest import SMOLLM2, TINY
from tests.stack.running import CACHE
from tests.stack.scripted import scripted
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

MINILM = "all-minilm-l6-v2"
#: SmolLM2's own base is 100,000.
OTHER_ROPE_BASE = 10_000.0
LAYER = ".layers.15."
SEED = 0
#: Seconds for an answer, on a machine that is busy with other tests.
ANSWER_S = 120.0


def copied(model: Model, folder: Path) -> Path:
    """A copy of a checkpoint, without its manifest, to be broken."""
    checkpoints.ensure(model, CACHE, lambda _: None)
    place = shutil.copytree(checkpoints.folder_of(model, CACHE), folder / "checkpoint")
    (place / "manifest.json").unlink()
    return place


def with_a_shuffled_layer(place: Path) -> None:
    """Every matrix of one layer with its elements in another order."""
    order = np.random.default_rng(SEED)
    (file,) = place.glob("*.safetensors")
    with safe_open(file, framework="pt") as tensors:
        found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 It is no mapping.
    for name, tensor in found.items():
        if LAYER in name and tensor.dim() == 2:
            found[name] = tensor.flatten()[torch.from_numpy(order.permutation(tensor.numel()))].reshape(tensor.shape)
    save_file(found, file)


def with_another_rope_base(place: Path) -> None:
    """Positions turn at another speed."""
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"rope_theta": OTHER_ROPE_BASE}))


def with_another_tokenizer(place: Path) -> None:
    """Each word has its neighbour's number, as after one more word in the list."""
    tokenizer = json.loads((place / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    special = {it["content"] for it in tokenizer["added_tokens"]}
    plain = sorted((number, word) for word, number in words.items() if word not in special)
    numbers = [number for number, _ in plain]
    moved = dict(zip((word for _, word in plain), [*numbers[1:], numbers[0]], strict=True))
    tokenizer["model"]["vocab"] = words | moved
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))


FAULTS: dict[str, Callable[[Path], None] | None] = {
    "sound": None,
    "one layer shuffled": with_a_shuffled_layer,
    "another rope base": with_another_rope_base,
    "another tokenizer": with_another_tokenizer,
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_broken_checkpoint_is_seen(fault: str, tmp_path: Path) -> None:
    """SmolLM2 as it is passes; with a layer shuffled, another rope base or another tokenizer it does not."""
    model = catalog.find(SMOLLM2)
    place = copied(model, tmp_path)
    if spoil := FAULTS[fault]:
        spoil(place)
    assert await verdict(fault, model, ModelSettings(name=SMOLLM2), place, tmp_path) is (spoil is None)


@pytest.mark.parametrize("is_noisy", [False, True], ids=["sound", "noisy"])
async def test_noise_on_one_rank_is_seen(is_noisy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiny-gpt-oss over two ranks passes, and with noise in the second one's share it does not."""
    if is_noisy:
        for name, value in known_to_vllm(tmp_path / "plugin").items():
            monkeypatch.setenv(name, value)
    model = catalog.find(TINY)
    place = copied(model, tmp_path)
    wanted = ModelSettings(name=TINY, tensor=2)
    assert (
        await verdict("noise on one rank" if is_noisy else "two ranks", model, wanted, place, tmp_path) is not is_noisy
    )


async def test_an_embedding_model_is_examined(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 puts texts of one meaning near each other."""
    model = catalog.find(MINILM)
    assert await verdict("embeddings", model, ModelSettings(name=MINILM), copied(model, tmp_path), tmp_path)


def test_an_engine_that_loses_its_sense_is_taken_out(tmp_path: Path) -> None:
    """Idle engines are asked again and again; its state, its reason and the directory's warning say what it was."""
    stack = scripted(tmp_path)
    try:
        stack.until_ready()
        (tmp_path / "records" / "nonsense").touch()

        def failed() -> ReplicaReport | None:
            found = (it.report for it in stack.listed())
            return next((it for it in found if it.state is ReplicaState.FAILED), None)

        report = until(failed, 300, 0.5)
        assert report and report.ejected == SENSELESS
        assert report.reason and report.reason.startswith("it talks nonsense: it finds a known text unlikely: -50.00")
        (tmp_path / "records" / "nonsense").unlink()
        until(lambda: stack.ready(), 120, 0.5)
        assert any("was taken out: it talks nonsense" in warning for warning in stack.directory().warnings)
    finally:
        stack.stop()


async def verdict(title: str, model: Model, wanted: ModelSettings, place: Path, home: Path) -> bool:
    """Does an engine on this checkpoint make sense? Prints its figures."""
    settings = Settings.model_validate({"home": home, "engine": {"host": "127.0.0.1"}})
    secret.create_if_absent(home)
    spec = engine_spec(model, wanted, place, settings, settings.secret_file)
    async with running(spec) as engine:
        await engine.until_listening()
        await engine.first_token()
        try:
            is_sound, why = await engine.require_sense(0, ANSWER_S, is_in_use=False), ""
        except Senseless as error:
            is_sound, why = False, str(error)
        print(f"\n{title:22} {await _figures(model, engine)} {why or 'makes sense'}")
        return is_sound


async def _figures(model: Model, engine: Engine) -> str:
    if model.sanity is None or model.name == MINILM:
        return ""
    scored = await engine.log_likelihoods(0, aiohttp.ClientTimeout(ANSWER_S)) or ()
    distance = sense.deviation(model.sanity, scored)
    return f"{sense.score(model.sanity, scored):7.3f}" + (f" ±{distance:.3f}" if distance is not None else "")
