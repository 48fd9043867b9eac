"""LoRA adapters as PEFT writes them: random, and strong enough to change what a model says."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from serving.config import AdapterSettings
from serving.engine.adapters import CONFIG, WEIGHTS

#: Of the factors' entries: their product's is 0.18 at rank 8, about that of the model's own weights (measured: 0.05 to
#: 0.29). At 0.1 the model said the same as without.
DEVIATION = 0.25
LAYERS = 30
#: Modules of a layer of SmolLM2-135M with the widths of their input and output.
MODULES = {"self_attn.q_proj": (576, 576), "self_attn.v_proj": (576, 192), "mlp.down_proj": (1536, 576)}


def write_base(folder: Path, layers: int) -> None:
    """A checkpoint with the shapes of SmolLM2-135M's first layers, and nothing in them."""
    folder.mkdir()
    places = {f"model.layers.{layer}.{module}.weight": MODULES[module] for layer in range(layers) for module in MODULES}
    shapes = {name: (out, into) for name, (into, out) in places.items()}
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')


def write(
    folder: Path, seed: int, rank: int = 8, narrower_by: int = 0, layers: int = LAYERS, deviation: float = DEVIATION
) -> AdapterSettings:
    """An adapter of SmolLM2-135M in `folder`, called as the folder is; `narrower_by` makes it one of another model."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for module, (width_in, width_out) in MODULES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            shapes = {"lora_A": (rank, width_in - narrower_by), "lora_B": (width_out - narrower_by, rank)}
            for part, shape in shapes.items():
                tensors[f"{name}.{part}.weight"] = random.normal(0, deviation, shape).astype(np.float32)
    save_file(tensors, folder / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(module.rpartition(".")[2] for module in MODULES),
    }
    (folder / CONFIG).write_text(json.dumps(config))
    return AdapterSettings(name=folder.name, path=str(folder))


def rename(folder: Path, names: Callable[[str], str]) -> None:
    """Give every tensor of an adapter another name."""
    save_file({names(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
