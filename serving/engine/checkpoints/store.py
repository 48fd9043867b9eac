"""Store: the checkpoints kept under `home/models`, one folder per model and recipe hash.

Asked before an engine starts. A folder appears under its final name only when it is whole; whatever a killed build
left behind lies under another name and goes with the next build. A file lock lets one process build while others wait.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.catalog import MODELS, Model, MountedSource, RegistryPackageSource, TrainedHereSource
from serving.engine.checkpoints import manifest
from serving.engine.checkpoints.download import SCRATCH
from serving.engine.checkpoints.recipe import Recipe, Report
from serving.engine.checkpoints.recipes import RECIPES, recipe_of
from serving.errors import Refusal

_MIB = 2**20
#: Bytes left free for everything else on the same disk (ledger, logs).
_SPARE_BYTES = 64 * _MIB
#: Folders of a build that are no part of the checkpoint: ours, and the hub client's notes on what it has fetched.
_SCRATCHES = (SCRATCH, ".cache")
_ANY_HASH = "?" * 12
#: What vLLM reads first of a checkpoint.
_CONFIG = "config.json"


@dataclass(frozen=True)
class Kept:
    """One line of `serving models list`."""

    model: Model
    folder: Path
    is_ready: bool
    """Is there a complete checkpoint of the current recipe?"""
    size_bytes: int
    outdated: tuple[Path, ...]
    """Checkpoints of other recipes of this model: safe to delete when nothing serves them."""


def folder_of(model: Model, home: Path, recipe: Recipe | None = None) -> Path:
    """The folder of `model`'s checkpoint, whether it exists yet or not; raises Refusal when it cannot be built or fetched here."""
    if isinstance(model.source, MountedSource):
        return Path(model.source.path)
    return home / "models" / f"{model.name}-{(recipe or recipe_of(model)).hash()}"


def ensure(
    model: Model,
    home: Path,
    report: Report,
    recipe: Recipe | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Return the folder of a complete, verified checkpoint of `model`, building it first when it is missing.

    A mounted one is only looked at: an engine compares its files before their first load. Raises Refusal, in one
    sentence that says what to do, when the disk is full, a download fails or a file differs from its checksum.
    """
    if isinstance(model.source, MountedSource):
        return _mounted(model)
    recipe = recipe or recipe_of(model)
    folder = folder_of(model, home, recipe)
    if not folder.exists():
        with _refusing_full_disk(model), _lock(model, folder.parent, report):
            if not folder.exists():
                _build(model, recipe, folder, report, clock)
    return _compared(model, folder)


def _mounted(model: Model) -> Path:
    """The folder of a mounted checkpoint; raises Refusal when it does not hold one."""
    folder = folder_of(model, Path())
    if not folder.is_dir():
        raise Refusal(
            f"{model.name} is {model.source}, and there is no such folder here: mount it, or correct its path."
        )
    if not (folder / _CONFIG).is_file():
        raise Refusal(f"{model.name} is {model.source}, and that folder has no {_CONFIG}: it holds no checkpoint.")
    return folder


def verify(model: Model, home: Path) -> Path:
    """Compare the checkpoint of `model` with its manifest and checksums; raises Refusal when that fails or cannot be done."""
    return _compared(model, _mounted(model) if isinstance(model.source, MountedSource) else folder_of(model, home))


def _compared(model: Model, folder: Path) -> Path:
    if manifest.compare(folder, model.checksums):
        return folder
    if isinstance(model.source, MountedSource):
        raise Refusal(f"{folder} has no manifest and {model.name} no checksums, so there is nothing to compare.")
    raise Refusal(f"There is no finished checkpoint in {folder}: fetch the model first.")


def listing(home: Path, models: Mapping[str, Model] = MODELS, recipes: Mapping[str, Recipe] = RECIPES) -> list[Kept]:
    """Every model that is built or mounted here, and which of its checkpoints are kept."""
    return [
        _found(model) if isinstance(model.source, MountedSource) else _kept(model, home, recipes.get(name))
        for name, model in sorted(models.items())
        if name in recipes or not isinstance(model.source, RegistryPackageSource | TrainedHereSource)
    ]


def _found(model: Model) -> Kept:
    folder = folder_of(model, Path())
    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Kept(model, folder, (folder / _CONFIG).is_file(), size_bytes, outdated=())


def _kept(model: Model, home: Path, recipe: Recipe | None) -> Kept:
    folder = folder_of(model, home, recipe)
    whole = manifest.read(folder)
    size_bytes = sum(file.size_bytes for file in whole.files.values()) if whole else 0
    others = tuple(sorted(path for path in folder.parent.glob(f"{model.name}-{_ANY_HASH}") if path != folder))
    return Kept(model, folder, whole is not None, size_bytes, others)


def _build(model: Model, recipe: Recipe, folder: Path, report: Report, clock: Callable[[], float]) -> None:
    _remove_leftovers(model, folder.parent, but=_draft(folder) if recipe.resumes else None)
    _refuse_without_space(model, recipe, folder.parent)
    started_s = clock()
    with _unfinished(folder, recipe.resumes) as unfinished:
        recipe.build(unfinished, lambda line: report(f"{model.name}: {line}"))
        for scratch in _SCRATCHES:
            shutil.rmtree(unfinished / scratch, ignore_errors=True)
        manifest.write(unfinished, model.name, recipe.hash())
        unfinished.rename(folder)
    report(f"{model.name}: ready after {clock() - started_s:.0f} s in {folder}")


@contextmanager
def _unfinished(folder: Path, resumes: bool) -> Iterator[Path]:
    """A scratch folder beside `folder`, deleted afterwards unless it was renamed or lets the next attempt resume."""
    unfinished = _draft(folder)
    unfinished.mkdir(exist_ok=resumes)
    try:
        yield unfinished
    finally:
        if not resumes:
            shutil.rmtree(unfinished, ignore_errors=True)


def _draft(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.unfinished")


def _remove_leftovers(model: Model, models: Path, but: Path | None) -> None:
    """Only called with the model's lock held, so no other process is building there."""
    for leftover in models.glob(f".{model.name}-{_ANY_HASH}.unfinished"):
        if leftover != but:
            shutil.rmtree(leftover)


def _refuse_without_space(model: Model, recipe: Recipe, models: Path) -> None:
    needed_bytes = model.disk_mib * _MIB + recipe.scratch_bytes + _SPARE_BYTES
    free_bytes = shutil.disk_usage(models).free
    if free_bytes < needed_bytes:
        raise Refusal(
            f"Building {model.name} needs {needed_bytes // _MIB} MiB in {models} and {free_bytes // _MIB} MiB are free:"
            " free the difference or set SERVING_HOME to a larger disk."
        )


@contextmanager
def _refusing_full_disk(model: Model) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Refusal(
            f"The disk became full while {model.name} was built: free {model.disk_mib} MiB or set SERVING_HOME to a"
            " larger disk, then start again."
        ) from None


@contextmanager
def _lock(model: Model, models: Path, report: Report) -> Iterator[None]:
    """A lock for one process at a time; the kernel releases it when its holder dies."""
    models.mkdir(parents=True, exist_ok=True)
    with (models / f".{model.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"{model.name}: another process is building it, waiting for that one")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
