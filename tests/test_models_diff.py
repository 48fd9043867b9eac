"""`serving models diff`: before a change of settings, which engines it would restart, and why."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
BEFORE: dict[str, Any] = {
    "engine": {"heartbeat_s": 0.5},
    "models": [
        {"name": "gpt-oss-120b", "profile": "balanced", "gpu": "h100", "min_replicas": 2, "max_replicas": 3},
        {"name": "gpt-oss-20b", "profile": "balanced", "gpu": "h100"},
        {"name": "smollm2-135m-instruct", "max_replicas": 2},
    ],
}


def diff(folder: Path, after: dict[str, Any], command: str = "serving models diff before.yaml after.yaml") -> list[str]:
    """What the command prints of two real files."""
    home = {"home": str(folder / "home")}
    (folder / "before.yaml").write_text(yaml.safe_dump(home | BEFORE))
    (folder / "after.yaml").write_text(yaml.safe_dump(home | after))
    line = [sys.executable, "-m", *command.split()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SERVING_")}
    environment |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (folder / "home").exists()  # nothing is fetched, made or started
    return done.stdout.splitlines()


def test_each_model_says_what_becomes_of_it(tmp_path: Path) -> None:
    """Restarted with its reasons, only bounded otherwise, added or removed: one line each."""
    after = {
        "models": [
            {
                "name": "gpt-oss-120b",
                "profile": "balanced",
                "gpu": "h100",
                "tensor": 4,
                "min_replicas": 2,
                "max_replicas": 3,
            },
            {"name": "gpt-oss-20b", "profile": "balanced", "gpu": "h100", "max_replicas": 4},
            {"name": "tiny-gpt-oss"},
        ]
    }
    assert diff(tmp_path, after) == [
        "gpt-oss-120b: restarts its 2 to 3 engines (tensor 2 -> 4, gpus_per_node 2 -> 4)",
        "gpt-oss-20b: only its bounds change (max_replicas 1 -> 4), nothing restarts",
        "tiny-gpt-oss: added, starts 1 engine",
        "smollm2-135m-instruct: removed, which drains and stops its 1 to 2 engines",
    ]


def test_a_setting_of_all_engines_restarts_only_whom_it_enters(tmp_path: Path) -> None:
    """The CPU's cache size is nothing to an engine on GPUs; a heartbeat is nothing to any engine."""
    engine = {"heartbeat_s": 1.0, "kv_cache_gib": 2}
    gpu = "unchanged; without a restart: kv_cache_gib 1 -> 2, heartbeat_s 0.5 -> 1.0"
    assert diff(tmp_path, BEFORE | {"engine": engine}) == [
        f"gpt-oss-120b: {gpu}",
        f"gpt-oss-20b: {gpu}",
        "smollm2-135m-instruct: restarts its 1 to 2 engines (kv_cache_gib 1 -> 2)",
    ]


def test_default_output_tokens_restart_nothing(tmp_path: Path) -> None:
    """Gateways send them with each call: an engine is not started with them."""
    first = BEFORE["models"][0] | {"default_output_tokens": 512}
    lines = diff(tmp_path, BEFORE | {"models": [first, *BEFORE["models"][1:]]})
    assert lines[0] == "gpt-oss-120b: unchanged; without a restart: default_output_tokens 8192 -> 512"


def test_another_home_or_profile_is_named_before_what_follows_from_it(tmp_path: Path) -> None:
    """Secret and caches move with the home, batches and ranks change with the profile: the cause comes first."""
    first = {"name": "gpt-oss-120b", "profile": "latency", "gpu": "h100", "min_replicas": 2, "max_replicas": 3}
    lines = diff(tmp_path, {"home": "/other", "models": [first, *BEFORE["models"][1:]]})
    home = f"home {tmp_path / 'home'} -> /other"
    assert lines[0].startswith(
        f"gpt-oss-120b: restarts its 2 to 3 engines ({home}, profile balanced -> latency, tensor 2 -> 4, "
    )
    assert lines[1:] == [
        f"gpt-oss-20b: restarts its 1 engine ({home})",
        f"smollm2-135m-instruct: restarts its 1 to 2 engines ({home})",
    ]


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    """The sentence that `serving up` would end with, before anybody tries."""
    (tmp_path / "settings.yaml").write_text("models: [{name: smollm2-135m-instruct, tensor: 2}]")
    line = [sys.executable, "-m", "serving", "models", "diff", "settings.yaml", "settings.yaml"]
    done = subprocess.run(
        line, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "9 attention heads" in done.stderr and done.stdout == ""


def test_the_operators_page_shows_the_command_as_it_runs(tmp_path: Path) -> None:
    """deploy/README.md names the command; with equal files everything is unchanged."""
    (command,) = re.findall(r"^(serving models diff .*)$", (ROOT / "deploy" / "README.md").read_text(), re.MULTILINE)
    assert [line.partition(": ")[2] for line in diff(tmp_path, BEFORE, command)] == ["unchanged"] * 3
