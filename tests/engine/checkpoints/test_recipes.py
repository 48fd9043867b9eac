"""Which recipe belongs to which model, and the child process that a recipe runs in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving.catalog import MODELS, Model, RegistryPackageSource, TrainedHereSource
from serving.engine.checkpoints import child
from serving.engine.checkpoints.recipes import RECIPES, recipe_of
from serving.errors import Refusal


def is_built_here(model: Model) -> bool:
    return isinstance(model.source, RegistryPackageSource | TrainedHereSource)


def test_every_local_model_has_a_recipe() -> None:
    """Each model that is built here has a recipe, every recipe belongs to one, and others are fetched whence they come."""
    assert set(RECIPES) == {name for name, model in MODELS.items() if is_built_here(model)}
    assert "openai/gpt-oss-120b" in recipe_of(MODELS["gpt-oss-120b"]).identity


def test_every_source_exists() -> None:
    """A recipe's hash covers files that are there."""
    for name in RECIPES:
        assert all(source.is_file() for source in recipe_of(MODELS[name]).sources)


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules a child can run."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    return tmp_path


def write_recipe(scripts: Path, body: str) -> None:
    (scripts / "toy_recipe.py").write_text(
        "import errno, os, sys\n"
        "from pathlib import Path\n"
        "from serving.engine.checkpoints import child\n"
        "from serving.errors import Refusal\n"
        f"def build(folder, report):\n    {body}\n"
        "sys.exit(child.main(build, Path(sys.argv[1])))\n"
    )


def test_a_childs_progress_arrives_and_its_noise_does_not(scripts: Path) -> None:
    """What the recipe reports is progress; what libraries print, even by file descriptor, is not."""
    write_recipe(scripts, "os.write(1, b'noise\\n'); print('noise'); report('half done')")
    lines = list[str]()

    child.run("toy_recipe", [str(scripts)], lines.append)

    assert lines == ["half done"]


def test_a_childs_refusal_is_raised_here(scripts: Path) -> None:
    """A recipe's Refusal keeps its sentence across the process boundary."""
    write_recipe(scripts, "raise Refusal('Not today.')")

    with pytest.raises(Refusal, match=r"^Not today\.$"):
        child.run("toy_recipe", [str(scripts)], print)


def test_a_childs_full_disk_is_raised_here(scripts: Path) -> None:
    """A full disk in the child is a full disk here."""
    write_recipe(scripts, "raise OSError(errno.ENOSPC, 'full')")

    with pytest.raises(OSError, match="No space left on device"):
        child.run("toy_recipe", [str(scripts)], print)


def test_a_child_that_dies_is_a_refusal(scripts: Path) -> None:
    """A recipe that is killed ends in a sentence, not in silence."""
    write_recipe(scripts, "os.kill(os.getpid(), 9)")

    with pytest.raises(Refusal, match="exit code -9"):
        child.run("toy_recipe", [str(scripts)], print)


def test_importing_the_store_imports_no_framework() -> None:
    """Listing models stays quick: what only a recipe needs is imported in its child alone."""
    heavy = "{'torch', 'transformers', 'vllm', 'gguf', 'tokenizers'}"
    probe = f"import sys, serving.engine.checkpoints.store; print(sorted({heavy} & set(sys.modules)))"

    output = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout

    assert output == "[]\n"
