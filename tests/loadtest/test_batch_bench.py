"""What a batch takes of memory is measured part by part, and is that of a window however many lines it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.batch_bench import lines_of, measured

#: Two windows and their pieces, with all that Python does not give back at once.
WINDOW_BYTES_MAX = 48 * 1024 * 1024


async def test_it_measures_a_batch_from_its_file_to_its_files(tmp_path: Path) -> None:
    """Of which some lines are answered and all others named."""
    found = await measured(tmp_path, 600, 300)
    assert [it.name for it in found.parts] == ["kept", "checked", "answered", "written"]
    assert (found.batch.done, found.batch.total) == (600, 600) and found.batch.done - found.batch.failed >= 300
    assert next(lines_of(found)).startswith("600 lines, 0 MB: expired")


@pytest.mark.long
async def test_a_file_of_many_lines_needs_memory_for_a_window_of_it(tmp_path: Path) -> None:
    """A quarter of a million lines are more than twice as many bytes."""
    found = await measured(tmp_path, 250_000, 1000)
    assert found.file_bytes > WINDOW_BYTES_MAX
    assert max(it.peak_bytes for it in found.parts[1:]) < WINDOW_BYTES_MAX
