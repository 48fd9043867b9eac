"""Builds one image: `python deploy/images/build.py gateway --repository registry.example.com/serving`.

pins.toml → bases by digest → wheels, held against the locks → a folder with nothing else in it → podman or docker, without
a network where no system packages are wanted → the image, and its bill of materials beside it in .cache/images.

A checkout's other files never reach the builder: the build context is made here, file by file (IMG-2).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from serving.errors import Refusal  # noqa: E402 The checkout's own, which is not installed everywhere.

WORK = ROOT / ".cache" / "images"
#: The Python whose wheels are fetched, whichever runs this; wheels for manylinux_2_31 run on every base (see `make locks`).
TAGS = ["manylinux1", "manylinux2010", "manylinux2014", *(f"manylinux_2_{minor}" for minor in range(5, 32)), "linux"]
WHEELS_OF = ["--python-version", "3.11", *(part for tag in TAGS for part in ("--platform", f"{tag}_x86_64"))]
#: As pyproject.toml asks.
SETUPTOOLS_OLDEST = 78
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Image:
    """One entry of `images` in the pins."""

    name: str
    title: str
    dockerfile: str
    bases: tuple[str, ...]
    locks: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """What the image is made from, as its labels say."""

    version: str
    revision: str
    url: str
    #: Seconds since 1970 of the commit.
    epoch: int
    #: The same of the last commit to the recipes or the locks: the time every file of the image gets, so that two builds
    #: are equal, and layers without the project too when only the project was changed (IMG-14).
    recipe_epoch: int


def main(arguments: Sequence[str]) -> int:
    """Build what was asked for; 0, or one sentence and 1."""
    asked = parser().parse_args(arguments)
    try:
        pins = read_pins()
        image = image_of(pins, asked.image)
        local = dict(named(text) for text in asked.base)
        bases = {name: base(pins, name, local) for name in image.bases}
        source = source_of(ROOT, asked.source)
        context = stage(image, source, "" if local else str(pins["python"]), bases)
        reference = f"{asked.repository}/{image.name}:{asked.tag or source.version}"
        build(asked.tool or tool(), image, source, bases, context, reference, is_local=bool(local))
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as failed:
        print(f"`{' '.join(map(str, failed.cmd[:3]))} …` failed; its reason stands above.", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    it = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    it.add_argument("image", help="an image of pins.toml")
    it.add_argument(
        "--repository", default="localhost/gpt-oss-serving", help="registry and path before the image's name"
    )
    it.add_argument("--tag", help="default: the project's version")
    it.add_argument(
        "--base", action="append", default=[], metavar="NAME=REFERENCE", help="a local image in a base's place"
    )
    it.add_argument("--source", help="URL of the sources for the labels; default: the checkout's origin")
    it.add_argument("--tool", choices=["podman", "docker"], help="default: the first of the two that is installed")
    return it


def read_pins() -> dict[str, Any]:
    return tomllib.loads((HERE / "pins.toml").read_text())


def image_of(pins: Mapping[str, Any], name: str) -> Image:
    """The image of that name; raises Refusal where there is none."""
    if name not in pins["images"]:
        raise Refusal(f"There is no image {name}: pins.toml has {', '.join(pins['images'])}.")
    it = pins["images"][name]
    return Image(name, it["title"], it["dockerfile"], tuple(it["bases"]), tuple(it["locks"]))


def named(text: str) -> tuple[str, str]:
    """`python=localhost/base` as a pair."""
    name, _, reference = text.partition("=")
    if not reference:
        raise Refusal(f"--base {text} names no image: write --base python=localhost/base.")
    return name, reference


def base(pins: Mapping[str, Any], name: str, local: Mapping[str, str]) -> str:
    """The base to build on: the local one, or the pinned one by digest. Raises Refusal when it is pinned to nothing."""
    if name in local:
        return local[name]
    pinned = pins["bases"][name]
    if not DIGEST.fullmatch(pinned.get("digest", "")):
        raise Refusal(
            f"The base {name} ({pinned['reference']}) has no digest in pins.toml: `skopeo inspect --raw "
            f"docker://{pinned['reference']} | sha256sum` prints it; or name a local image with --base {name}=…."
        )
    return f"{pinned['reference']}@{pinned['digest']}"


def tool() -> str:
    """podman, else docker; raises Refusal without either."""
    for name in ("podman", "docker"):
        if shutil.which(name):
            return name
    raise Refusal("Neither podman nor docker is installed, and one of them has to build: install podman.")


def source_of(root: Path, url: str | None) -> Source:
    """Version, revision and time of the checkout. Raises Refusal outside one: an image says what it was made from."""
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    try:
        revision, epoch = git(root, "log", "-1", "--format=%H %ct").split()
    except subprocess.CalledProcessError:
        raise Refusal(
            "Images are built from a git checkout, whose revision they carry: clone the repository."
        ) from None
    if git(root, "status", "--porcelain", "--untracked-files=no"):
        revision += "-modified"
    recipe_epoch = git(root, "log", "-1", "--format=%ct", "--", "deploy/images", "deploy/locks")
    return Source(version, revision, public(url or origin(root)), int(epoch), int(recipe_epoch or epoch))


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return done.stdout.decode().strip()


def origin(root: Path) -> str:
    try:
        return git(root, "config", "remote.origin.url")
    except subprocess.CalledProcessError:
        return "unknown"


def public(url: str) -> str:
    """The URL without a user name or a token in it."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)


def stage(image: Image, source: Source, python: str, bases: Mapping[str, str]) -> Path:
    """Make the build context anew and return its folder; wheels that are there already are kept.

    `python` is the patch version the base must have; empty for a local base, which has its own.
    """
    context = WORK / image.name
    for old in context.glob("*"):
        if old.name != "wheels":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    (context / "wheels").mkdir(parents=True, exist_ok=True)
    recipe = HERE / image.dockerfile
    scripts = [HERE / name for name in sorted(set(re.findall(r"/context/(\w+\.py)", recipe.read_text())))]
    for path in (*scripts, recipe, ROOT / "LICENSE"):
        shutil.copy(path, context / path.name)
    requirements(context, "sbom", [HERE / "locks" / "sbom.txt"], [])
    locks = [ROOT / "deploy" / name for name in image.locks if name != "torch"]
    loose = [wheel_of_the_project(context / "project", source)]
    if "torch" in image.locks:
        found = torch(context / "torch")
        locks, loose = (locks, [*loose, found]) if found else ([*locks, ROOT / "deploy/locks/torch-cuda.txt"], loose)
    requirements(context, "serving", locks, loose)
    about = {"image": image.name, "version": source.version, "python": python, "bases": " ".join(bases.values())}
    (context / "about.json").write_text(json.dumps(about))
    return context


def requirements(context: Path, name: str, locks: Sequence[Path], loose: Sequence[Path]) -> None:
    """Write requirements-{name}.txt and put the wheels it names beside it; those of no lock are hashed as they are here."""
    wheels = context / "wheels" / name
    wheels.mkdir(exist_ok=True)
    pinned = "".join(lock.read_text() for lock in locks)
    (context / f"requirements-{name}.txt").write_text(pinned)
    print(f"  wheels of {name}", flush=True)
    pip("download", *WHEELS_OF, "--require-hashes", "-d", str(wheels), "-r", str(context / f"requirements-{name}.txt"))
    for wheel in loose:
        distribution, version, *_ = wheel.name.split("-")
        pinned += f"{distribution}=={version} --hash=sha256:{sha256(wheel)}\n"
        shutil.copy(wheel, wheels)
    (context / f"requirements-{name}.txt").write_text(pinned)
    forget(wheels, pinned)


def forget(wheels: Path, pinned: str) -> None:
    """Delete wheels that an earlier build left and no requirement names now."""
    wanted = set(re.findall(r"sha256:([0-9a-f]{64})", pinned))
    for wheel in wheels.iterdir():
        if sha256(wheel) not in wanted:
            wheel.unlink()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pip(*arguments: str, environment: Mapping[str, str] | None = None) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        arguments[0],
        "--no-deps",
        *arguments[1:],
    ]
    if arguments[0] == "download":
        command += ["--only-binary", ":all:"]
    # pip's warnings are about places in the user's own settings; an error still comes out.
    subprocess.run(command, check=True, env={**os.environ, "PIP_QUIET": "2", **(environment or {})})


def torch(folder: Path) -> Path | None:
    """torch's CPU build where pip's settings lead to it; else None, for the default index's build, twice the size.

    No lock has its checksum: PyTorch's index and a mirror of it may hold different builds of one version.
    """
    lock = (ROOT / "deploy" / "locks" / "torch-cuda.txt").read_text()
    pinned = re.search(r"^torch==([\w.]+)", lock, re.M)
    if pinned is None:
        raise Refusal("deploy/locks/torch-cuda.txt does not pin torch: run `make locks`.")
    try:
        pip("download", *WHEELS_OF, "-d", str(folder), f"torch=={pinned[1]}+cpu")
    except subprocess.CalledProcessError:
        print(f"  pip finds no torch {pinned[1]}+cpu: taking the default index's build, with NVIDIA's libraries unused")
        return None
    return next(folder.glob("torch-*.whl"))


def wheel_of_the_project(folder: Path, source: Source) -> Path:
    """The project's own wheel, of the files git tracks and no others."""
    for name in git(ROOT, "ls-files", "serving", "pyproject.toml", "LICENSE").splitlines():
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "tree" / name)
    # Two wheels of one commit are equal: their files carry its time.
    epoch = {"SOURCE_DATE_EPOCH": str(source.epoch)}
    pip("wheel", *isolation(), "-w", str(folder), str(folder / "tree"), environment=epoch)
    shutil.rmtree(folder / "tree")
    return next(folder.glob("*.whl"))


def isolation() -> list[str]:
    """Build with the setuptools that is here where it is new enough (.venv has it), else let pip fetch one."""
    try:
        here = int(metadata.version("setuptools").partition(".")[0])
    except metadata.PackageNotFoundError:
        return []
    return ["--no-build-isolation"] if here >= SETUPTOOLS_OLDEST else []


def build(
    tool: str, image: Image, source: Source, bases: Mapping[str, str], context: Path, reference: str, *, is_local: bool
) -> None:
    """Run the builder, then put the bill of materials beside the image's name."""
    created = datetime.fromtimestamp(source.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    values = {f"{name.upper()}_BASE": it for name, it in bases.items()}
    values |= {"TITLE": image.title, "VERSION": source.version, "REVISION": source.revision, "SOURCE": source.url}
    values |= {"CREATED": created, "BASE": bases[image.bases[-1]], "SOURCE_DATE_EPOCH": str(source.recipe_epoch)}
    # What is mounted is no part of the cache's key, so nothing is taken from the cache.
    command = [tool, "build", "--no-cache", "--platform", "linux/amd64", "--tag", reference]
    command += ["--file", str(context / image.dockerfile)]
    command += [f"--build-arg={name}={text}" for name, text in values.items()]
    if tool == "podman":
        # One layer on the base, and nothing left behind of the stage before; of the image with large steps, one for each.
        is_layered = image.dockerfile == "engine-gpu.Dockerfile"
        command += ["--timestamp", str(source.recipe_epoch), f"--layers={str(is_layered).lower()}"]
    if is_local or image.dockerfile == "gateway.Dockerfile":
        command += ["--network=none"]
    print(f"  {reference}", flush=True)
    subprocess.run([*command, str(context)], check=True)
    bill = [tool, "run", "--rm", "--network=none", "--entrypoint=cat", reference, "/usr/share/sbom/sbom.cdx.json"]
    (WORK / f"{image.name}.cdx.json").write_bytes(subprocess.run(bill, check=True, stdout=subprocess.PIPE).stdout)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
