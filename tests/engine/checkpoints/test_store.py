"""The store of checkpoints, with recipes of a few bytes: whole or absent, built once, refused in one sentence."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.catalog import Model, MountedSource, TrainedHereSource
from serving.engine.checkpoints import manifest, store
from serving.engine.checkpoints.recipe import Recipe, Report
from serving.errors import Refusal


def a_model(disk_mib: int = 1) -> Model:
    return Model(
        name="toy",
        summary="A toy.",
        source=TrainedHereSource(),
        context_tokens=8,
        download_mib=0,
        disk_mib=disk_mib,
        license="Apache-2.0",
    )


def a_recipe(tmp_path: Path, build: Callable[[Path, Report], None], source: str = "first") -> Recipe:
    path = tmp_path / "recipe.txt"
    path.write_text(source)
    return Recipe(build=build, sources=(path,))


def write_weights(folder: Path, report: Report) -> None:
    report("writing")
    (folder / "weights").write_bytes(b"0123456789")


def silent(_: str) -> None:
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_builds_once_and_says_so(tmp_path: Path) -> None:
    """The first call builds and reports, the second finds the same folder and builds nothing."""
    recipe = a_recipe(tmp_path, write_weights)
    first, second = list[str](), list[str]()

    folder = store.ensure(a_model(), tmp_path, first.append, recipe)
    again = store.ensure(a_model(), tmp_path, second.append, recipe)

    assert folder == again == tmp_path / "models" / f"toy-{recipe.hash()}"
    assert names(folder) == ["manifest.json", "weights"]
    assert first[0] == "toy: writing"
    assert second == []


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    """A build that fails leaves neither a checkpoint nor its half."""

    def fail(folder: Path, report: Report) -> None:
        write_weights(folder, report)
        raise Refusal("No.")

    with pytest.raises(Refusal, match=r"^No\.$"):
        store.ensure(a_model(), tmp_path, silent, a_recipe(tmp_path, fail))

    assert names(tmp_path / "models") == []


def test_removes_what_a_killed_build_left(tmp_path: Path) -> None:
    """The next build of a model removes that model's half-built folders, of whatever recipe, and no other model's."""
    models = tmp_path / "models"
    for leftover in (".toy-0123456789ab.unfinished", ".toy-two-0123456789ab.unfinished"):
        (models / leftover).mkdir(parents=True)
        (models / leftover / "weights").write_bytes(b"half")

    folder = store.ensure(a_model(), tmp_path, silent, a_recipe(tmp_path, write_weights))

    assert names(models) == [".toy-two-0123456789ab.unfinished", folder.name]


def test_the_second_process_waits_and_says_so(tmp_path: Path) -> None:
    """Two callers at once: one builds, the other says that it waits and gets the same folder."""
    is_building, may_finish = threading.Event(), threading.Event()
    builds = list[Path]()
    lines, folders = list[str](), list[Path]()

    def slow(folder: Path, report: Report) -> None:
        builds.append(folder)
        is_building.set()
        assert may_finish.wait(10)
        write_weights(folder, report)

    def waiting(line: str) -> None:
        lines.append(line)
        may_finish.set()

    recipe = a_recipe(tmp_path, slow)
    builder = threading.Thread(target=lambda: folders.append(store.ensure(a_model(), tmp_path, silent, recipe)))
    builder.start()
    assert is_building.wait(10)
    folders.append(store.ensure(a_model(), tmp_path, waiting, recipe))
    builder.join()

    assert lines == ["toy: another process is building it, waiting for that one"]
    assert len(builds) == 1
    assert folders[0] == folders[1]


def test_refuses_before_building_when_space_is_short(tmp_path: Path) -> None:
    """Too little free space is refused before a byte is written, in one sentence that says what to do."""
    built = list[Path]()

    with pytest.raises(Refusal, match=r"^Building toy needs \d+ MiB in .* free the difference or set SERVING_HOME"):
        store.ensure(
            a_model(disk_mib=2**40), tmp_path, silent, a_recipe(tmp_path, lambda folder, _: built.append(folder))
        )

    assert built == []


def test_refuses_a_disk_that_becomes_full(tmp_path: Path) -> None:
    """A disk that fills while building (the kernel's own ENOSPC, from /dev/full) is one sentence, and no half remains."""

    def fill(folder: Path, report: Report) -> None:
        write_weights(folder, report)
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"0")

    with pytest.raises(Refusal, match=r"^The disk became full while toy was built: free 1 MiB"):
        store.ensure(a_model(), tmp_path, silent, a_recipe(tmp_path, fill))

    assert names(tmp_path / "models") == []


@pytest.mark.parametrize("damage", [b"0123456780", b"01234", None], ids=["changed", "cut", "missing"])
def test_refuses_a_damaged_file(tmp_path: Path, damage: bytes | None) -> None:
    """A file that is changed, cut or gone since it was built is refused by name, with what to do."""
    recipe = a_recipe(tmp_path, write_weights)
    weights = store.ensure(a_model(), tmp_path, silent, recipe) / "weights"
    if damage is None:
        weights.unlink()
    else:
        weights.write_bytes(damage)

    with pytest.raises(Refusal, match=r"weights is not what was built .*delete .* and start again\.$"):
        store.ensure(a_model(), tmp_path, silent, recipe)


def test_verify_refuses_what_was_never_built(tmp_path: Path) -> None:
    """A folder without a manifest is no checkpoint."""
    with pytest.raises(Refusal, match="fetch the model first"):
        manifest.verify(tmp_path)


def test_a_changed_recipe_builds_anew(tmp_path: Path) -> None:
    """The folder's name follows the recipe's sources; the older checkpoint is listed as outdated."""
    before = store.ensure(a_model(), tmp_path, silent, a_recipe(tmp_path, write_weights))
    changed = a_recipe(tmp_path, write_weights, source="second")
    after = store.ensure(a_model(), tmp_path, silent, changed)

    [kept] = store.listing(tmp_path, {"toy": a_model()}, {"toy": changed})

    assert before != after
    assert kept.is_ready
    assert kept.size_bytes == len(b"0123456789")
    assert kept.outdated == (before,)


def test_a_package_version_is_part_of_the_hash(tmp_path: Path) -> None:
    """Recipes with the same sources differ when they rest on different packages."""
    source = tmp_path / "recipe.txt"
    source.write_text("same")

    hashes = {
        Recipe(write_weights, (source,), packages).hash() for packages in ((), ("msgspec",), ("no-such-package",))
    }

    assert len(hashes) == 3


def test_listing_knows_what_is_absent(tmp_path: Path) -> None:
    """A model that was never fetched is listed, as not ready."""
    [kept] = store.listing(tmp_path, {"toy": a_model()}, {"toy": a_recipe(tmp_path, write_weights)})

    assert (kept.is_ready, kept.size_bytes, kept.outdated) == (False, 0, ())


def mounted(folder: Path, **facts: object) -> Model:
    return a_model().model_copy(update={"source": MountedSource(path=str(folder))} | facts)


def test_a_mounted_checkpoint_is_used_where_it_is(tmp_path: Path) -> None:
    """Nothing is built or copied, and it is listed as ready; a folder that holds none is refused, and says why."""
    folder, home = tmp_path / "volume", tmp_path / "home"
    with pytest.raises(Refusal, match="no such folder here"):
        store.ensure(mounted(folder), home, silent)
    folder.mkdir()
    with pytest.raises(Refusal, match=r"has no config\.json"):
        store.ensure(mounted(folder), home, silent)
    assert not store.listing(home, {"toy": mounted(folder)}, {})[0].is_ready
    (folder / "config.json").write_text("{}")
    assert store.ensure(mounted(folder), home, silent) == store.folder_of(mounted(folder), home) == folder
    [kept] = store.listing(home, {"toy": mounted(folder)}, {})
    assert (kept.is_ready, kept.size_bytes, home.exists()) == (True, 2, False)


def test_a_mounted_checkpoint_is_compared_with_what_there_is(tmp_path: Path) -> None:
    """Its manifest, its model's checksums, or both; with neither nothing can be verified, and that is said."""
    (tmp_path / "config.json").write_text("{}")
    right, wrong = hashlib.sha256(b"{}").hexdigest(), hashlib.sha256(b"other").hexdigest()
    with pytest.raises(Refusal, match="nothing to compare"):
        store.verify(mounted(tmp_path), tmp_path)
    assert store.verify(mounted(tmp_path, checksums={"config.json": right}), tmp_path) == tmp_path
    for checksums in ({"config.json": wrong}, {"model.safetensors": right}):
        with pytest.raises(Refusal, match="not the one the model's checksums name"):
            store.verify(mounted(tmp_path, checksums=checksums), tmp_path)
    manifest.write(tmp_path, "toy", "measured once")
    assert store.verify(mounted(tmp_path), tmp_path) == tmp_path
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(Refusal, match="not what was built"):
        store.verify(mounted(tmp_path), tmp_path)


def test_a_built_checkpoint_must_match_the_models_checksums_too(tmp_path: Path) -> None:
    """A whole build of other weights than the catalogue names is refused."""
    wrong = a_model().model_copy(update={"checksums": {"weights": "0" * 64}})
    with pytest.raises(Refusal, match="checksums name"):
        store.ensure(wrong, tmp_path, silent, a_recipe(tmp_path, write_weights))
