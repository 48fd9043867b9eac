"""`serving models ...` knows the models that the settings describe as it knows the catalogue's."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from serving import catalog
from serving.catalog import MountedSource

ROOT = Path(__file__).parents[1]


def models(settings: Path, *arguments: str) -> str:
    """What the command prints; it must succeed."""
    line = [sys.executable, "-m", "serving", "--settings", str(settings), "models", *arguments]
    environment = os.environ | {"SERVING_HOME": str(settings.parent / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_own_mounted_model_is_one_of_them(tmp_path: Path) -> None:
    """List, show, budget, fetch and verify, from one entry in a settings file."""
    folder = tmp_path / "volume"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    own = catalog.fine_tune(catalog.find("gpt-oss-20b"), "mine", MountedSource(path=str(folder))).model_dump(
        mode="json"
    )
    own["checksums"] = {"config.json": hashlib.sha256(b"{}").hexdigest()}
    settings = tmp_path / "settings.yaml"
    served = {"name": "mine", "profile": "balanced", "kv_offloading_gib": 64}
    settings.write_text(yaml.safe_dump({"own_models": [own], "models": [served]}))

    (listed,) = [row for row in models(settings, "list").splitlines() if row.startswith("mine ")]
    assert "on this machine; balanced on 1 × h100" in listed
    assert json.loads(models(settings, "show", "mine"))["base"] == "gpt-oss-20b"
    assert json.loads(models(settings, "budget", "mine", "--json"))["budget"]["host_kv_gib"] == 64, "as it is served"
    assert models(settings, "fetch", "mine").strip() == str(folder)
    assert "matches" in models(settings, "verify", "mine")
