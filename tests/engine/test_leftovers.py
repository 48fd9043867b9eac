"""What a killed stack leaves behind is removed by the next, and nothing else is."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.engine import leftovers, processes


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of this test's own, with a path as short as any."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def gone() -> str:
    """The name of an owner that has ended."""
    code = "from serving.engine import processes; print(processes.new_tree())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_rays_folder_is_closed_to_others_and_removed(temporary: Path) -> None:
    """Ray opens its own folder to everyone; the one above it is the user's alone, and its name cannot be foretold."""
    with leftovers.ray_folder(processes.new_tree()) as one, leftovers.ray_folder(processes.new_tree()) as two:
        assert one.parent != two.parent and one.parent.parent == temporary
        assert one.parent.stat().st_mode & 0o777 == 0o700
        one.mkdir(mode=0o777)
    assert list(temporary.iterdir()) == []


def test_a_folder_with_a_long_path_is_not_given_to_ray(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket's path has room for 107 bytes: Ray could not start there."""
    deep = temporary / ("d" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with leftovers.ray_folder(processes.new_tree()) as folder:
        assert folder.parent.parent == Path("/tmp")
        socket = folder / "session_2026-11-28_19-36-26_780616_4194304" / "sockets" / "plasma_store"
        assert len(os.fsencode(socket)) < 108


def test_a_sweep_takes_folders_whose_owner_is_gone(temporary: Path) -> None:
    """A killed stack's folder goes; a living stack's stays, and so does one that another could have made as a trap."""
    owner = gone()
    mine, theirs, living = (Path(tempfile.mkdtemp(prefix=leftovers.RAY_PREFIX)) for _ in range(3))
    for folder, name in ((mine, owner), (theirs, owner), (living, processes.new_tree())):
        (folder / "owner").write_text(name)
    theirs.chmod(0o777)
    trap = temporary / f"{leftovers.RAY_PREFIX}trap"
    trap.symlink_to(living)
    (temporary / f"{leftovers.SCRATCH_PREFIX}{owner}").mkdir()
    leftovers.sweep()
    assert set(temporary.iterdir()) == {theirs, living, trap}
