"""The table of engine features in deploy/README.md: every setting is in it, its flags are taken, and its proofs exist."""

from __future__ import annotations

import re
from pathlib import Path

from serving.budget import FEATURES
from vllm_names import names

ROOT = Path(__file__).parents[2]
README = (ROOT / "deploy" / "README.md").read_text()
ROWS = README.split("<!-- features -->")[1].split("<!-- end of features -->")[0].strip().splitlines()[2:]


def test_every_feature_has_a_row_with_flag_and_proof() -> None:
    """A setting that a profile's features may be named by, the flags that it becomes, and files that prove it."""
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in ROWS]
    said = " ".join(setting + what for setting, what, *_ in rows) + " ".join(row[2] for row in rows)
    for feature in FEATURES:
        assert feature in said or f"--{feature.replace('_', '-')}" in said, feature
    for setting, _, flags, proofs, source in rows:
        taken = re.findall("`(--[a-z-]+)`", flags)
        assert taken and set(taken) <= set(names().flags), setting
        files = re.findall("`(tests/[a-z_/]+[.]py)`", proofs)
        assert files and all((ROOT / file).is_file() for file in files), setting
        assert source, setting
