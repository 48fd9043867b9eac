"""The installer: what it decides by rule, and how it fails for real."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import installer
from serving import catalog
from serving.errors import Refusal

ROOT = Path(__file__).resolve().parents[2]
MACHINE = installer.Machine(
    system="Linux",
    architecture="x86_64",
    glibc=(2, 36),
    has_avx2=True,
    memory_gb=16,
    free_memory_gb=12,
    free_disk_gb=50,
)
LISTED = "torch (2.15.0)\nAvailable versions: 2.15.0, 2.14.0, {}, 2.12.1\n"


def checkout(folder: Path) -> installer.Layout:
    """A copy of what the installer needs of a checkout."""
    for name in ("pyproject.toml", "serving/__init__.py", "serving/errors.py", "LICENSE"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    return installer.Layout(folder)


def built(layout: installer.Layout) -> installer.Layout:
    """The checkout with an environment that looks finished."""
    layout.python.parent.mkdir(parents=True)
    layout.python.touch()
    layout.stamp.write_text(installer.stamp(layout, is_python_chosen=False))
    return layout


def started(layout: installer.Layout, index: str) -> subprocess.Popen[str]:
    """The real bootstrap in a copy of the checkout, with a package index of our choice and no other source."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PIP_INDEX_URL": index, "PIP_CONFIG_FILE": os.devnull, "HOME": str(layout.root)}
    command = [sys.executable, str(layout.root / "deploy" / "bootstrap.py")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_environment_in_step_costs_nothing(tmp_path: Path) -> None:
    """When the stamp matches, the whole step takes under 0.3 s of processor time and touches nothing."""
    layout = built(checkout(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    before_s = resource.getrusage(resource.RUSAGE_CHILDREN)

    done = subprocess.run(
        [sys.executable, "-B", str(tmp_path / "deploy" / "bootstrap.py")], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    after_s = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after_s.ru_utime + after_s.ru_stime - before_s.ru_utime - before_s.ru_stime < 0.3
    assert sorted(tmp_path.rglob("*")) == before
    assert layout.stamp.exists()


@pytest.mark.parametrize(
    ("changed", "is_built"),
    [("deploy/locks/cpu.txt", False), ("deploy/locks/torch-cuda.txt", False), ("pyproject.toml", True)],
)
def test_changed_file_is_noticed(tmp_path: Path, changed: str, is_built: bool) -> None:
    """Another lock means another environment; other metadata of the project alone means installing that alone."""
    layout = built(checkout(tmp_path))

    with (tmp_path / changed).open("a") as file:
        file.write("\n# changed\n")

    assert not installer._is_in_step(layout, is_python_chosen=False)
    assert installer._is_built(layout, is_python_chosen=False) == is_built


def test_moved_checkout_is_built_anew(tmp_path: Path) -> None:
    """A virtual environment holds its own path, so that of a moved checkout is not used."""
    built(checkout(tmp_path / "here"))
    moved = installer.Layout((tmp_path / "here").rename(tmp_path / "there"))

    assert not installer._is_built(moved, is_python_chosen=False)


def test_other_python_rebuilds_only_when_it_was_chosen(tmp_path: Path) -> None:
    """A new python3 on PATH changes nothing for a finished environment; PYTHON=… does."""
    layout = built(checkout(tmp_path))
    layout.stamp.write_text(layout.stamp.read_text().replace("python 3.", "python 4."))

    assert installer._is_in_step(layout, is_python_chosen=False)
    assert not installer._is_built(layout, is_python_chosen=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"system": "Darwin", "architecture": "arm64"}, "Darwin on arm64"),
        ({"architecture": "aarch64"}, "Linux on aarch64"),
        ({"glibc": (2, 28)}, "glibc 2.31 or newer"),
        ({"glibc": ()}, "glibc 2.31 or newer"),
        ({"has_avx2": False}, "no AVX2"),
        ({"memory_gb": 3.9}, "3.9 GB of memory"),
    ],
)
def test_unfit_machine_is_refused_in_a_sentence(change: dict[str, object], said: str) -> None:
    """Each thing that cannot work here is refused before anything is downloaded."""
    with pytest.raises(Refusal, match=said):
        installer.refuse_machine(dataclasses.replace(MACHINE, **change))  # type: ignore[arg-type] # one field a row


def test_fit_machine_is_not_refused() -> None:
    """The machine this is tested on passes, and so does the one in this file."""
    installer.refuse_machine(MACHINE)
    installer.refuse_machine(installer.Machine.here(ROOT))


def test_full_disk_is_refused_with_both_figures() -> None:
    """Too little room says how much is needed and how much there is."""
    with pytest.raises(Refusal, match=r"3\.7 GB of disk are needed here and 2\.0 are free"):
        installer.refuse_disk(2.0, 3.7)


def test_cpu_torch_is_taken_where_pip_finds_it() -> None:
    """The CPU build is installed exactly when pip lists exactly that version; else the default index's, locked."""
    layout = installer.Layout(ROOT)

    small = installer.choose_torch(LISTED.format("2.13.0+cpu, 2.13.0"), layout)
    large = installer.choose_torch(LISTED.format("2.13.0+cpu.cxx11, 12.13.0+cpu, 2.13.0"), layout)

    assert small.requirement == ("torch==2.13.0+cpu",)
    assert large.requirement == ("--require-hashes", "-r", str(layout.torch_lock))
    assert large.disk_kept_gb > small.disk_kept_gb


def test_announcement_names_what_it_takes() -> None:
    """Download, disk and memory are told, each beside what there is; the default model is counted in."""
    torch = installer.choose_torch(LISTED.format("2.13.0+cpu"), installer.Layout(ROOT))

    said = installer.announcement(torch, 186, MACHINE)

    assert "0.8 GB: 186 packages and torch 2.13.0+cpu; then 0.1 GB for the default model" in said
    assert "3.4 GB while installing, then 2.7 GB and 0.3 GB for the model (50.0 GB free)" in said
    assert "5.7 GB while an engine serves (12.0 GB free)" in said


def test_announced_model_is_the_catalogues() -> None:
    """What is announced for the default model is what the catalogue says of it."""
    model = catalog.find("smollm2-135m-instruct")

    assert round(model.download_mib * 2**20 / 1e9, 1) == installer.MODEL_DOWNLOAD_GB
    assert round(model.disk_mib * 2**20 / 1e9, 1) == installer.MODEL_DISK_GB


def test_progress_is_read_from_what_pip_says() -> None:
    """Packages, megabytes and the one in hand come out of pip's log; nothing yet is said as such."""
    said = (
        "Collecting torch==2.13.0 (from -r x.txt (line 3))\n  Downloading torch-2.13.0-cp311.whl (526.1 MB)\n"
        "Collecting yarl==1.25.1\n  Using cached yarl-1.25.1.whl (250 kB)\nCollecting zip==1\n"
    )

    assert installer.describe_download(said, 20) == "3 of 20 found, 526 MB, at zip"
    assert installer.describe_download("WARNING: location ignored\n", 20) == "asking the registry"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("WARNING: Retrying ... NewConnectionError\nERROR: No matching distribution found for torch", "PIP_INDEX_URL"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "does not know"),
        ("ERROR: No matching distribution found for ray==2.60.0", "no ray==2.60.0 for this Python"),
        ("The virtual environment was not created because ensurepip is not available.", "python3-venv"),
        ("WARNING: noise\nERROR: something new", "Installing x failed: ERROR: something new"),
    ],
)
def test_failure_says_what_to_do(said: str, told: str) -> None:
    """What pip or venv complains of becomes one sentence, the cause before its consequence."""
    sentence = installer.explain(said, "x")

    assert told in sentence
    assert "\n" not in sentence


def test_unreachable_registry_ends_in_one_sentence(tmp_path: Path) -> None:
    """Without a network the real set-up ends in a sentence that names the setting, and exit code 1."""
    layout = checkout(tmp_path)

    said, complained = started(layout, "http://127.0.0.1:9/simple").communicate()

    assert complained.startswith("The package registry does not answer")
    assert complained.count("\n") == 1
    assert said.startswith("Setting up .venv")
    assert not layout.stamp.exists()


def test_interrupted_set_up_leaves_no_process(tmp_path: Path) -> None:
    """SIGTERM while pip waits for a registry ends pip too, with a sentence, and nothing counts as installed."""
    layout = checkout(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as registry:
        process = started(layout, f"http://127.0.0.1:{registry.getsockname()[1]}/simple")
        registry.settimeout(60)
        connection, _ = registry.accept()
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, complained = process.communicate(timeout=30)
        connection.close()

    assert process.returncode == 130
    assert complained.startswith("Interrupted")
    assert children
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert not layout.stamp.exists()


def test_second_set_up_waits_for_the_first(tmp_path: Path) -> None:
    """Two commands at once do the work once: the second says that it waits, then finds everything in step."""
    layout = built(checkout(tmp_path))
    finished = layout.stamp.read_text()
    layout.stamp.unlink()

    with installer._alone(layout):
        second = started(layout, "http://127.0.0.1:9/simple")
        assert second.stdout is not None
        said = second.stdout.readline()
        layout.stamp.write_text(finished)
    _, complained = second.communicate(timeout=30)

    assert "waiting for it" in said
    assert (second.returncode, complained) == (0, "")
    assert layout.stamp.read_text() == finished
