"""Builds `.venv` from the committed locks; started by bootstrap.py, before anything of this project is installed.

stamp fresh? → check the machine → venv → find torch → say what is downloaded → torch, lock, project → stamp.
Without a fresh stamp everything is built anew; pip keeps what it has downloaded. Standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from serving.errors import Refusal

ROOT = Path(__file__).resolve().parent.parent
RECIPE = 1
"""Raised when this file installs the same locks in another way: every environment is then built anew."""
GLIBC_OLDEST = (2, 31)
"""The oldest C library that the wheels in cpu.txt run on (`make locks` resolves for manylinux_2_31)."""
MEMORY_NEEDED_GB = 5.7
"""While one CPU engine serves the default model: 4.4 resident in its three processes, the rest Ray and the gateway. 5.4 was
measured in bfloat16, and 0.3 is what float32 takes more."""
CPU_DISK_PEAK_GB = 3.4
"""The least an environment takes while it is installed: the CPU build's 2.7 with the wheels beside them."""
MODEL_DOWNLOAD_GB, MODEL_DISK_GB = 0.1, 0.3
"""The default model, fetched when it is first served."""
LOADED = ("vllm.entrypoints.openai.api_server", "vllm.v1.worker.cpu_worker", "ray.serve")
"""What an engine's processes import: 5,900 of the 25,000 modules installed."""
PROGRESS_INTERVAL_S = 5.0
"""Between two lines of progress: often enough to see life, few enough for a CI log."""
PROBE_TIMEOUT_S = 15
"""How long the first look at the registry may take per try; pip's own default is as long."""


@dataclass(frozen=True)
class Torch:
    """One of the two ways to get torch, and what the whole environment costs with it."""

    about: str
    requirement: tuple[str, ...]
    packages: int
    download_gb: float
    #: The most it takes while wheels lie beside what they unpack to, and what stays.
    disk_peak_gb: float
    disk_kept_gb: float


@dataclass(frozen=True)
class Layout:
    """Where things are in a checkout."""

    root: Path

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.venv / ".installed"

    @property
    def state(self) -> Path:
        return self.root / ".cache" / "setup"

    @property
    def log(self) -> Path:
        return self.state / "pip.log"

    @property
    def lock(self) -> Path:
        return self.root / "deploy" / "locks" / "cpu.txt"

    @property
    def torch_lock(self) -> Path:
        return self.root / "deploy" / "locks" / "torch-cuda.txt"


def main(is_python_chosen: bool) -> int:
    """Bring `.venv` in step with the locks; 0 when it is, else one sentence on standard error and 1."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        install(Layout(ROOT), is_python_chosen, time.monotonic)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 1
    except OSError as error:
        print(explain(str(error), "the environment"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; the same command begins again with what pip has cached.", file=sys.stderr)
        return 130
    return 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def install(layout: Layout, is_python_chosen: bool, clock: Callable[[], float]) -> None:
    """Do what is missing: nothing, the project alone, or everything. Raises Refusal in one sentence."""
    if _is_in_step(layout, is_python_chosen):
        return
    with _alone(layout):
        if _is_in_step(layout, is_python_chosen):
            return
        if not _is_built(layout, is_python_chosen):
            machine = Machine.here(layout.root)
            refuse_machine(machine)
            refuse_disk(machine.free_disk_gb, CPU_DISK_PEAK_GB + MODEL_DISK_GB)
            _build(layout, clock)
        _install_project(layout)
        layout.stamp.write_text(stamp(layout, is_python_chosen))


def _is_in_step(layout: Layout, is_python_chosen: bool) -> bool:
    return layout.python.exists() and _read(layout.stamp) == stamp(layout, is_python_chosen)


def _is_built(layout: Layout, is_python_chosen: bool) -> bool:
    """Whether at most the project's own metadata is out of step."""
    wanted = stamp(layout, is_python_chosen).splitlines()
    return layout.python.exists() and _read(layout.stamp).splitlines()[:-1] == wanted[:-1]


def stamp(layout: Layout, is_python_chosen: bool) -> str:
    """What a finished `.venv` was built from: Python, locks, then the project's own metadata on the last line.

    The Python already there is kept unless the user chose one: a new python3 on PATH rebuilds nothing.
    """
    built_with = _read(layout.stamp).partition("\n")[0]
    running = "python {}.{}".format(*sys.version_info[:2])
    # A virtual environment holds its own absolute path: one that was moved is broken.
    environment = hashlib.sha256(f"recipe {RECIPE} in {layout.root}\n".encode())
    for path in (layout.lock, layout.torch_lock):
        environment.update(path.read_bytes())
    project = hashlib.sha256((layout.root / "pyproject.toml").read_bytes())
    python = running if is_python_chosen or not built_with else built_with
    return f"{python}\nlocks {environment.hexdigest()}\nproject {project.hexdigest()}\n"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


@contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    """Hold the checkout's set-up; a second `make` waits here and then finds the work done."""
    layout.state.mkdir(parents=True, exist_ok=True)
    with (layout.state / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another command is setting up this checkout; waiting for it.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Machine:
    """What the CPU stack asks of a machine, as found."""

    system: str
    architecture: str
    glibc: tuple[int, ...]
    has_avx2: bool
    memory_gb: float
    free_memory_gb: float
    free_disk_gb: float

    @classmethod
    def here(cls, root: Path) -> Machine:
        memory = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read(Path("/proc/meminfo")), re.M))
        return cls(
            system=platform.system(),
            architecture=platform.machine(),
            glibc=tuple(int(part) for part in re.findall(r"\d+", platform.libc_ver()[1])[:2]),
            has_avx2=bool(re.search(r"^flags\s*:.*\bavx2\b", _read(Path("/proc/cpuinfo")), re.M)),
            memory_gb=int(memory.get("MemTotal", 0)) * 1024 / 1e9,
            free_memory_gb=int(memory.get("MemAvailable", 0)) * 1024 / 1e9,
            free_disk_gb=shutil.disk_usage(root).free / 1e9,
        )


def refuse_machine(machine: Machine) -> None:
    """Raise Refusal for a machine on which the CPU stack cannot run at all."""
    if (machine.system, machine.architecture) != ("Linux", "x86_64"):
        raise Refusal(
            f"This is {machine.system} on {machine.architecture}, and vLLM's CPU build runs on Linux x86-64 only: "
            "use such a machine, a virtual one will do."
        )
    if machine.glibc < GLIBC_OLDEST:
        oldest = ".".join(str(part) for part in GLIBC_OLDEST)
        raise Refusal(
            f"glibc {oldest} or newer is needed (Debian 11, Ubuntu 20.04, RHEL 9 or later): use such a system."
        )
    if not machine.has_avx2:
        raise Refusal("This processor has no AVX2, which vLLM's CPU kernels need: use a machine from 2015 or later.")
    if machine.memory_gb < MEMORY_NEEDED_GB:
        raise Refusal(
            f"This machine has {machine.memory_gb:.1f} GB of memory and one engine needs {MEMORY_NEEDED_GB:.1f}."
        )


def refuse_disk(free_gb: float, needed_gb: float) -> None:
    """Raise Refusal when the environment would not fit."""
    if free_gb < needed_gb:
        raise Refusal(
            f"{needed_gb:.1f} GB of disk are needed here and {free_gb:.1f} are free: make room, then run this again."
        )


def _build(layout: Layout, clock: Callable[[], float]) -> None:
    began_s = clock()
    print(f"Setting up {layout.venv.name}/ with Python {platform.python_version()}.", flush=True)
    _create_venv(layout)
    torch = choose_torch(_torch_versions(layout), layout)
    machine = Machine.here(layout.root)
    print(announcement(torch, _count(layout.lock), machine), flush=True)
    refuse_disk(machine.free_disk_gb, torch.disk_peak_gb + MODEL_DISK_GB)
    pip = Pip(layout, clock)
    pip.install("torch", torch.requirement, torch.packages)
    pip.install("packages", ("--require-hashes", "-r", str(layout.lock)), _count(layout.lock))
    _load(layout)
    print(f"Set up in {clock() - began_s:.0f} s.", flush=True)


def announcement(torch: Torch, packages: int, machine: Machine) -> str:
    """What is about to be downloaded and what it takes, printed before the first byte."""
    return "\n".join(
        (
            f"  download  {torch.download_gb:.1f} GB: {packages} packages and {torch.about}; "
            f"then {MODEL_DOWNLOAD_GB:.1f} GB for the default model",
            f"  disk      {torch.disk_peak_gb:.1f} GB while installing, then {torch.disk_kept_gb:.1f} GB "
            f"and {MODEL_DISK_GB:.1f} GB for the model ({machine.free_disk_gb:.1f} GB free)",
            f"  memory    {MEMORY_NEEDED_GB:.1f} GB while an engine serves ({machine.free_memory_gb:.1f} GB free)",
        )
    )


def _create_venv(layout: Layout) -> None:
    command = [sys.executable, "-m", "venv", "--clear", str(layout.venv)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise Refusal(explain(made.stdout + made.stderr, "a virtual environment"))


def _torch_versions(layout: Layout) -> str:
    """pip's own list of the torch versions it finds with the user's settings; also the first look at the network."""
    command = [str(layout.python), "-m", "pip", "index", "versions", "torch"]
    command += ["--timeout", str(PROBE_TIMEOUT_S), "--retries", "2"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        raise Refusal(explain(asked.stderr, "the list of torch versions"))
    return asked.stdout


def choose_torch(listed: str, layout: Layout) -> Torch:
    """The CPU build where pip finds it, else the default index's build, which brings NVIDIA's libraries unused."""
    pinned = re.search(r"^torch==([\w.]+)", layout.torch_lock.read_text(), re.M)
    if pinned is None:
        raise Refusal("deploy/locks/torch-cuda.txt does not pin torch: run `make locks`.")
    version = f"{pinned[1]}+cpu"
    if re.search(rf"(?<![\w.]){re.escape(version)}(?![\w.])", listed):
        # No hash: PyTorch's index and a mirror of it may hold different builds of one version.
        return Torch(f"torch {version}", (f"torch=={version}",), 1, 0.8, CPU_DISK_PEAK_GB, 2.7)
    about = f"torch {pinned[1]} with NVIDIA's libraries, because pip finds no {version}"
    return Torch(about, ("--require-hashes", "-r", str(layout.torch_lock)), _count(layout.torch_lock), 3.1, 7.0, 6.0)


def _count(lock: Path) -> int:
    return len(re.findall(r"^[\w.-]+==", lock.read_text(), re.M))


def _install_project(layout: Layout) -> None:
    command = [str(layout.python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", "."]
    made = subprocess.run(command, cwd=layout.root, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise Refusal(explain(made.stderr, "the project itself"))


def _load(layout: Layout) -> None:
    """Import once what an engine imports: that byte-compiles it, and shows that it loads on this machine.

    Compiling all of the environment would take three times as long and 0.4 GB more, for files that are never opened.
    """
    print("  loading vLLM for the first time", flush=True)
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [str(layout.python), "-c", f"import {', '.join(LOADED)}"]
    loaded = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if loaded.returncode != 0:
        raise Refusal(explain(loaded.stderr, "the engine's packages"))


class Pip:
    """pip in the new environment: its chatter goes to a log, a line of progress to the user."""

    def __init__(self, layout: Layout, clock: Callable[[], float]) -> None:
        self._layout = layout
        self._clock = clock

    def install(self, name: str, requirements: tuple[str, ...], packages: int) -> None:
        """Install exactly what is named, from wheels. Raises Refusal that says what to do."""
        began_s, before = self._clock(), self._installed()
        with self._layout.log.open("w") as log, self._running(requirements, log.fileno()) as process:
            while not _has_ended(process):
                print(f"  {name}: {self._progress(packages, before)}, {self._clock() - began_s:.0f} s", flush=True)
        said = self._layout.log.read_text(errors="replace")
        if process.returncode != 0:
            raise Refusal(explain(said, name))
        print(f"  {name}: done, {self._clock() - began_s:.0f} s", flush=True)

    @contextmanager
    def _running(self, requirements: tuple[str, ...], log: int) -> Iterator[subprocess.Popen[bytes]]:
        temporary = self._layout.venv / "tmp"
        temporary.mkdir(exist_ok=True)
        command = [str(self._layout.python), "-m", "pip", "install", "--no-deps", "--no-compile", "--no-input"]
        command += ["--only-binary", ":all:", "--progress-bar", "off", "--disable-pip-version-check", *requirements]
        # Wheels are unpacked beside the environment: /tmp is a small memory file system on many machines.
        environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(temporary, ignore_errors=True)

    def _progress(self, packages: int, before: int) -> str:
        said = self._layout.log.read_text(errors="replace")
        if "Installing collected packages" in said:
            # pip takes an older version of a package out before it puts the new one in: the count may dip.
            return f"{max(0, self._installed() - before)} of {packages} installed"
        return describe_download(said, packages)

    def _installed(self) -> int:
        return sum(1 for _ in self._layout.venv.glob("lib/python*/site-packages/*.dist-info"))


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(PROGRESS_INTERVAL_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def describe_download(said: str, packages: int) -> str:
    """How far pip's log says that downloading is: packages of all, megabytes and the one it is at."""
    names = re.findall(r"^(?:Collecting|Processing) (?:\S*/)?([\w.+-]+)", said, re.M)
    sizes = re.findall(r"^\s+(?:Downloading|Using cached) .*\(([\d.]+) (kB|MB|GB)\)", said, re.M)
    megabytes = sum(float(size) * {"kB": 1e-3, "MB": 1.0, "GB": 1e3}[unit] for size, unit in sizes)
    return f"{len(names)} of {packages} found, {megabytes:.0f} MB, at {names[-1]}" if names else "asking the registry"


#: What pip, venv or the system say → what to do. The first that matches wins.
EXPLANATIONS: tuple[tuple[str, str], ...] = (
    (r"No space left on device", "The disk is full: make room, then run this again."),
    (
        r"ensurepip is not available|No module named '?ensurepip",
        "This Python has no venv module: install it (Debian and Ubuntu: `apt install python3-venv`), "
        "or name another Python with PYTHON=/path/to/python3.11.",
    ),
    (
        r"DO NOT MATCH THE HASHES",
        "The package registry serves a file that deploy/locks does not know: use another registry (PIP_INDEX_URL).",
    ),
    (
        r"ConnectionError|NameResolutionError|Connect(?:ion)?Timeout|ReadTimeout|ProxyError|SSLError|Connection reset|HTTP error",
        "The package registry does not answer: check the network, or name a mirror with PIP_INDEX_URL (and PIP_CERT "
        "for its certificate), then run this again.",
    ),
    (
        r"No matching distribution found for (?P<what>\S+)",
        "The package registry has no {what} for this Python: name a complete mirror with PIP_INDEX_URL, "
        "or another Python with PYTHON=/path/to/python3.11.",
    ),
)


def explain(said: str, what: str) -> str:
    """One sentence on what to do about a failed step, from what the tool said."""
    for pattern, sentence in EXPLANATIONS:
        match = re.search(pattern, said)
        if match is not None:
            return sentence.format(**match.groupdict())
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(("WARNING", "[notice]"))]
    return f"Installing {what} failed: {lines[-1].strip() if lines else 'no reason was given'}"
