"""A base image made here, from Debian's packages: for machines that reach a Debian mirror and no registry of images.

`python deploy/images/local_base.py REFERENCE [PACKAGE ...]` → debootstrap → what an image needs no more is removed → `podman import`.
It has what docker.io/library/python:3.11-slim-bookworm has, and what engines add to it, with Debian's own patch version
of Python 3.11; for engine-gpu, with the packages named too. Needs root, debootstrap and podman; `make test-images` calls it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
#: Python with what venv needs (debootstrap does not find python3-distutils by itself), certificates, and the two packages
#: that engine-cpu.Dockerfile would fetch.
PACKAGES = ("ca-certificates", "libnuma1", "python3", "python3-distutils", "python3-venv", "wget")
#: As in Debian's own slim images: they are not read in a container.
UNREAD = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache",
    "var/lib/apt/lists",
    "var/log",
)
WHERE_PYTHON_IS = Path("usr/local/bin/python3.11")


#: Program → Debian's package: what building and running images takes here.
PROGRAMS = {"podman": "podman", "skopeo": "skopeo", "debootstrap": "debootstrap", "runc": "runc"}


def main(reference: str, *extra: str) -> int:
    """Make the base unless it is there already, or with --equip install the programs; 0, or one sentence and 1."""
    if reference == "--equip":
        return equip()
    if subprocess.run(["podman", "image", "exists", reference], check=False).returncode == 0:
        print(f"{reference} is there already.")
        return 0
    missing = [name for name in ("debootstrap", "podman") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        print(
            f"A base can only be made by root with {' and '.join(missing) or 'debootstrap'} installed.", file=sys.stderr
        )
        return 1
    # Not in /tmp: it may be mounted without devices, or too small.
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="serving-base-") as folder:
        root = Path(folder) / "root"
        bootstrap(root, extra)
        slim(root)
        load(root, reference)
    print(f"{reference} is ready.")
    return 0


def equip() -> int:
    """Install what is missing with apt; where that cannot be, one sentence and 1."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if os.geteuid() != 0:
        print("Images are built and run as root here: `sudo make test-images`, or leave it to CI.", file=sys.stderr)
        return 1
    if missing and shutil.which("apt-get") is None:
        print(
            f"{', '.join(missing)} are missing and there is no apt to install them with: install them.", file=sys.stderr
        )
        return 1
    if missing:
        print(f"Installing {', '.join(missing)} with apt.", flush=True)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", "--quiet=2", *arguments], check=True, env=environment)
    return 0


def bootstrap(root: Path, extra: tuple[str, ...]) -> None:
    """Debian's smallest system with Python, and what else is wanted, in `root`."""
    mirror = os.environ.get("DEBIAN_MIRROR", MIRROR)
    include = f"--include={','.join((*PACKAGES, *extra))}"
    subprocess.run(["debootstrap", "--variant=minbase", include, SUITE, str(root), mirror], check=True)
    # Where the official image has it, and where Dockerfiles look.
    (root / WHERE_PYTHON_IS).symlink_to("/usr/bin/python3.11")


def slim(root: Path) -> None:
    """Take out what is not read in a container; the folders stay."""
    for folder in UNREAD:
        for path in (root / folder).iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def load(root: Path, reference: str) -> None:
    """Import `root` as an image of one layer."""
    path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    tar = subprocess.Popen(["tar", "--numeric-owner", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    with tar:
        subprocess.run(["podman", "import", "--change", f"ENV {path}", "-", reference], stdin=tar.stdout, check=True)
    if tar.returncode != 0:
        raise subprocess.CalledProcessError(tar.returncode, "tar")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
