"""Carrier: fills a bundle and unloads one, with an operator's usual programs: helm, skopeo, and the container engine's own.

skopeo copies an image from a registry into an archive without a daemon, without root and without changing its digest,
and from an archive into a registry the same way; into podman, docker and containerd their own commands load it.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import yaml

from serving.config import read_mapping
from serving.errors import Refusal
from serving.operate.bundle import (
    FORMAT,
    Contents,
    Files,
    Folder,
    Image,
    Manifest,
    Operator,
    Verified,
    contents,
    file_of,
    moved,
    seal,
    without_digest,
)
from serving.operate.values import merged

OPERATOR_CHART, OPERATOR_CHARTS = "kuberay-operator", "https://ray-project.github.io/kuberay-helm/"
#: Where `export` takes images from, as skopeo calls it.
SOURCES = {"registry": "docker://", "podman": "containers-storage:", "docker": "docker-daemon:"}
#: What loads an archive into an engine's own store.
LOADERS = {
    "podman": ("podman", "load", "--input"),
    "docker": ("docker", "load", "--input"),
    # The kubelet uses this containerd namespace.
    "ctr": ("ctr", "--namespace", "k8s.io", "images", "import"),
}
#: Characters of a program's output that a refusal quotes.
_WORDS_MAX = 1_000
_WHY = {
    "helm": "it says which images the chart needs",
    "skopeo": "it copies images between registries and archives",
}


def needed(chart: Path, values: Sequence[Path], operator: str | None, registry: str | None = None) -> Contents:
    """What the chart in a folder needs with these values files, from `helm template`. Raises Refusal.

    `registry` is where the images are now, where the values name the one they will be in.
    """
    about = read_mapping(chart / "Chart.yaml", "chart")
    now = {"images": {"registry": registry}} if registry is not None else {}
    chosen = merged(*(read_mapping(path, "values") for path in (chart / "values.yaml", *values)), now)
    arguments = ["template", "bundle", str(chart), *(f"--values={path}" for path in values)]
    if registry is not None:
        arguments.append(f"--set-string=images.registry={registry}")
    rendered = yaml.safe_load_all(_run("helm", *arguments))
    return contents(about, rendered, chosen, operator=operator)


def export(
    target: Path,
    chart: Path,
    values: Sequence[Path],
    wanted: Contents,
    checkpoints: Sequence[Path],
    *,
    source: str = "registry",
    operator_chart: Path | None = None,
) -> str:
    """Fill `target`, a folder, or a tar if its name ends in .tar; returns the bundle's checksum. Raises Refusal.

    `checkpoints` are the models' folders here, verified already. Nothing appears under the final name before it is
    whole.
    """
    if target.exists():
        raise Refusal(f"{target} exists already: name another place, or remove it.")
    for program in ("helm", "skopeo"):
        _find(program)
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        manifest = Manifest(
            FORMAT,
            str(read_mapping(chart / "Chart.yaml", "chart")["version"]),
            tuple(_save(reference, unfinished, source) for reference in wanted.images),
            tuple(_charts(chart, wanted.operator, operator_chart, unfinished / "charts")),
            tuple(_copied(folder, unfinished / "models") for folder in checkpoints),
            tuple(_values(values, unfinished)),
        )
        checksum = seal(unfinished, manifest)
        if target.suffix == ".tar":
            _pack(unfinished, target)
        else:
            unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return checksum


def _save(reference: str, folder: Path, source: str) -> Image:
    """Put one image into the bundle, as an archive that any engine loads under its own name."""
    file = file_of(reference)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    # skopeo takes a tag or a digest, not both; a digest cannot move.
    name, at, digest = reference.partition("@")
    asked = f"{without_tag(name)}@{digest}" if at else reference
    archive = f"oci-archive:{folder / file}:{without_digest(reference)}"
    _run("skopeo", "--override-os=linux", "--override-arch=amd64", "copy", "--quiet", SOURCES[source] + asked, archive)
    return Image(reference, file, digest_of(folder / file))


def without_tag(name: str) -> str:
    """`host:5000/name` of `host:5000/name:tag`."""
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def digest_of(archive: Path) -> str:
    """The digest of the one image in an OCI archive."""
    with tarfile.open(archive) as tar:
        index = tar.extractfile("index.json")
        listed: dict[str, Any] = msgspec.json.decode(index.read()) if index else {}
    return str(listed["manifests"][0]["digest"])


def _charts(chart: Path, operator: Operator | None, given: Path | None, folder: Path) -> Iterator[str]:
    """Our chart as a package, and the operator's: the given one, or the one that its authors publish."""
    folder.mkdir(parents=True)
    _run("helm", "package", str(chart), f"--destination={folder}")
    if operator is not None and given is not None:
        shutil.copy(given, folder)
    elif operator is not None:
        fetch = [OPERATOR_CHART, f"--repo={OPERATOR_CHARTS}", f"--version={operator.version}"]
        _run("helm", "pull", *fetch, f"--destination={folder}")
    yield from (f"charts/{path.name}" for path in sorted(folder.iterdir()))


def _copied(checkpoint: Path, folder: Path) -> str:
    shutil.copytree(checkpoint, folder / checkpoint.name)
    return checkpoint.name


def _values(values: Sequence[Path], folder: Path) -> Iterator[str]:
    """The values files in the order in which they are given to helm."""
    for number, path in enumerate(values):
        name = f"values/{number}-{path.name}"
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
        yield name


def _pack(folder: Path, target: Path) -> None:
    """Move the files into a tar one by one: most disks cannot hold the weights twice."""
    unfinished = target.with_name(f".{target.name}.packing")
    try:
        with tarfile.open(unfinished, "w") as tar:
            for name in sorted(Folder(folder).names()):
                tar.add(folder / name, name)
                (folder / name).unlink()
        unfinished.rename(target)
    finally:
        unfinished.unlink(missing_ok=True)


def load(verified: Verified, into: str, models: Path | None) -> list[str]:
    """Load every image into an engine's store or a registry, and copy the checkpoints to `models`; returns one line for each.

    `into` is podman, docker, ctr, or a registry's name. Loading again changes nothing. Raises Refusal.
    """
    given = [_give(verified.files, image, into) for image in verified.manifest.images]
    if models is None:
        return given
    return given + [_unpack(verified.files, f"models/{name}/", models / name) for name in verified.manifest.models]


def _give(files: Files, image: Image, into: str) -> str:
    with _on_disk(files, image.file) as archive:
        if into in LOADERS:
            program, *arguments = LOADERS[into]
            _run(program, *arguments, str(archive))
            return f"{without_digest(image.reference)} is in {into}"
        target = moved(image.reference, into)
        _run("skopeo", "copy", "--quiet", "--preserve-digests", f"oci-archive:{archive}", f"docker://{target}")
        return f"{target}@{image.digest} holds {image.reference}"


@contextmanager
def _on_disk(files: Files, name: str) -> Iterator[Path]:
    """A path that programs can open: the file itself, or a temporary copy unpacked from the tar."""
    if isinstance(files, Folder):
        yield files.path / name
        return
    with tempfile.NamedTemporaryFile(suffix=".tar") as copy:
        with files.open(name) as source:
            shutil.copyfileobj(source, copy, 2**20)
        copy.flush()
        yield Path(copy.name)


def _unpack(files: Files, prefix: str, folder: Path) -> str:
    """Copy a checkpoint; it appears under its name only when it is complete, as a fetched one does."""
    if folder.exists():
        return f"{folder} was there already"
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for name in sorted(it for it in files.names() if it.startswith(prefix)):
            path = unfinished / name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.open(name) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return f"{folder} is there"


def _find(program: str) -> str:
    """Where the program is; raises Refusal when it is not installed."""
    found = shutil.which(program)
    if found is None:
        reason = _WHY.get(program, "the images were to be loaded into it")
        raise Refusal(f"{program} is not installed, and {reason}: install it, then run this again.")
    return found


def _run(program: str, *arguments: str) -> str:
    """The program's output; raises Refusal with the end of its error output when it fails."""
    done = subprocess.run([_find(program), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = _last_words(done.stderr) or f"exit code {done.returncode}, and not a word."
        raise Refusal(f"{program} failed: {words}")
    return done.stdout


def _last_words(stderr: str) -> str:
    """The last paragraph as one line: a chart may refuse several things, and helm adds advice for the chart's author."""
    paragraphs = stderr.replace("Use --debug flag to render out invalid YAML", "").strip().split("\n\n")
    return " ".join(paragraphs[-1].split())[:_WORDS_MAX]
