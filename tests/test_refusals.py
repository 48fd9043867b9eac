"""What cannot be done is refused in one sentence, with exit code 1, before anything starts."""

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


def serving(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serving", *arguments],
        env=dict(os.environ) | {"SERVING_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1, result
    assert len(result.stderr.strip().splitlines()) == 1 and result.stdout == "", result
    assert all(word in result.stderr for word in words), result.stderr


def test_an_unknown_model_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    """A misspelt model costs nothing but the sentence that lists the right ones."""
    assert_refused(serving("up", "--model", "gpt-99", home=tmp_path), "gpt-99", "smollm2-135m-instruct")


@pytest.mark.parametrize("command", [("up",), ("gateway", "--engine", "http://127.0.0.1:9")])
def test_a_taken_port_is_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Found before anything else is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(serving(*command, "--port", str(port), home=tmp_path), str(port), "--port")


def test_a_home_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """The sentence names the variable that helps."""
    (tmp_path / "file").write_text("")
    assert_refused(serving("up", "--port", "1", home=tmp_path / "file" / "home"), "SERVING_HOME")


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"SERVING_GATEWAY__PORT": "many"}, "gateway.port"),
        ({"SERVING_GATEWAY__PROT": "1"}, "gateway.prot"),
        ({"SERVING_NOTHING": "1"}, "nothing"),
        ({"SERVING_GATEWAY__ALIASES": "{gpt-4o:"}, "SERVING_GATEWAY__ALIASES"),
        ({"SERVING_GATEWAY": "8080"}, "gateway"),
        ({"SERVING_GATEWAY__PREFILL_ENGINES": '["http://127.0.0.1:9"]'}, "prefill_engines need engines by address"),
        (
            {"SERVING_GATEWAY__PREFILL_ENGINES": '["http://e"]', "SERVING_GATEWAY__ENGINES": '["http://e"]'},
            "http://e is in prefill_engines and in engines",
        ),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, environment: dict[str, str], word: str) -> None:
    """A misspelt or unusable setting is named, not ignored."""
    assert_refused(serving("up", home=tmp_path, **environment), word)


@pytest.mark.parametrize("content", ["gateway: [", "- a list", "gateway: {prot: 1}"])
def test_a_wrong_settings_file_is_refused(tmp_path: Path, content: str) -> None:
    """Broken YAML, another shape and unknown keys are one sentence each."""
    (tmp_path / "settings.yaml").write_text(content)
    assert_refused(serving("--settings", str(tmp_path / "settings.yaml"), "up", home=tmp_path))


def test_a_missing_settings_file_is_refused(tmp_path: Path) -> None:
    """The sentence names the file."""
    assert_refused(serving("--settings", str(tmp_path / "none.yaml"), "up", home=tmp_path), "none.yaml")


def test_too_little_memory_is_refused(tmp_path: Path) -> None:
    """vLLM would fail after a minute; we say it at once."""
    assert_refused(serving("up", home=tmp_path, SERVING_ENGINE__MEMORY_SHARE="1.0"), "memory")


def test_a_home_in_use_is_refused(tmp_path: Path) -> None:
    """Two stacks on one home would write each other's settings: the second is told to take another."""
    with (tmp_path / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_refused(serving("up", home=tmp_path), "SERVING_HOME")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "smollm2-135m-instruct", "tensor": 2}, ("9 attention heads", "2 tensor ranks")),
        ({"name": "smollm2-135m-instruct", "expert": True}, ("no experts",)),
        ({"name": "tiny-gpt-oss", "tensor": 4}, ("2 KV heads", "4 tensor ranks")),
        ({"name": "gpt-oss-120b", "profile": "balanced"}, ("2 GPUs", "CPU build")),
        ({"name": "gpt-oss-120b"}, ("meant for GPUs", "balanced on h100")),
    ],
)
def test_an_engine_that_cannot_work_is_refused_before_anything_is_fetched(
    tmp_path: Path, model: dict[str, object], words: tuple[str, ...]
) -> None:
    """Minutes of download or training before the same sentence would be wasted; not even a home is made."""
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({"models": [model]}))
    home = tmp_path / "home"
    assert_refused(serving("--settings", str(tmp_path / "settings.yaml"), "up", home=home), *words)
    assert not home.exists()


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at the end", "at once"])
def test_a_full_disk_is_refused(tmp_path: Path, unbuffered: str) -> None:
    """Wherever it is met; here by a command whose own output has no room, as it writes or as it ends."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "serving", "tenants", "list"]
        environment = dict(os.environ) | {"SERVING_HOME": str(tmp_path), "PYTHONUNBUFFERED": unbuffered}
        result = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert result.returncode == 1 and result.stderr.startswith("The disk is full") and result.stderr.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error_to_tell(tmp_path: Path) -> None:
    """`serving models list | head -1` ends without a word on standard error."""
    command = ["bash", "-c", f"{sys.executable} -m serving models list | true"]
    environment = dict(os.environ) | {"SERVING_HOME": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.stderr == ""


def test_an_empty_home_is_the_usual_one(tmp_path: Path) -> None:
    """`SERVING_HOME=` is no home, as everywhere in a shell: not the folder one happens to stand in."""
    environment = dict(os.environ) | {"SERVING_HOME": "", "XDG_DATA_HOME": str(tmp_path / "data")}
    command = [sys.executable, "-m", "serving", "tenants", "list"]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert [it.name for it in tmp_path.iterdir()] == ["data"]
