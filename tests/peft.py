"""LoRA adapters as PEFT writes them: random, and strong enough to change what a model says."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from serving.config import AdapterSettings
from serving.engine.adapters import CONFIG, WEIGHTS

LAYERS = 30
#: Modules of a layer of SmolLM2-135M with the widths of their input and output.
MODULES = {"self_attn.q_proj": (576, 576), "self_attn.v_proj": (576, 192), "mlp.down_proj": (1536, 576)}


def write(folder: Path, seed: int, rank: int = 8, narrower_by: int = 0) -> AdapterSettings:
    """An adapter of SmolLM2-135M in `folder`, called as the folder is; `narrower_by` makes it one of another model."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for module, (width_in, width_out) in MODULES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            shapes = {"lora_A": (rank, width_in - narrower_by), "lora_B": (width_out - narrower_by, rank)}
            for part, shape in shapes.items():
                tensors[f"{name}.{part}.weight"] = random.normal(0, 0.1, shape).astype(np.float32)
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
