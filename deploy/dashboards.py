"""Dashboards: writes helm/dashboards/*.json, which the chart hands to Grafana, from boards/.

    python deploy/dashboards.py            # write them
    python deploy/dashboards.py --check    # exit 1 when they are out of step

Series called `model:…`, `serving:…` and `serving_gpu:…` are recorded by the rules (helm/files/rules.yaml).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from boards import autoscaling, engines, overview, path, serving, tenants
from boards.grafana import render

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "helm" / "dashboards"
BOARDS = tuple(it.BOARD for it in (overview, serving, tenants, engines, autoscaling, path))


def files() -> dict[Path, str]:
    """What each file should hold now."""
    return {FOLDER / f"{it.name}.json": json.dumps(render(it), indent=2, ensure_ascii=False) + "\n" for it in BOARDS}


def main() -> None:
    """Write the boards, or say which are out of step."""
    wanted, there = files(), {file: file.read_text() for file in FOLDER.glob("*.json")}
    changed = sorted(file for file in there.keys() | wanted if there.get(file) != wanted.get(file))
    if sys.argv[1:] != ["--check"]:
        for file in changed:
            file.write_text(wanted[file]) if file in wanted else file.unlink()
    elif changed:
        names = ", ".join(file.name for file in changed)
        sys.exit(f"helm/dashboards is out of step ({names}): run `python deploy/dashboards.py`.")


if __name__ == "__main__":
    main()
