"""Bundle: everything that an air-gapped installation needs, in one folder or tar, with checksums.

What is in it is read from the rendered chart (images), the values (models) and the chart itself (operator); `carrier`
moves the bytes. A bundle says of itself what it holds (`manifest.json`) and what each file must be (`SHA256SUMS`, which
`sha256sum --check` reads too). Nothing here starts a program or knows Kubernetes.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import msgspec

from serving.catalog import Model, draft_of, find
from serving.errors import Refusal

FORMAT = 1
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
#: What every checkpoint has.
CHECKPOINT = "config.json"
#: The annotation of our chart that says which version of the operator it is written for.
OPERATOR_ANNOTATION = "gpt-oss-serving/kuberay"
_OPERATOR_IMAGE = "quay.io/kuberay/operator:v{version}"
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


@dataclass(frozen=True)
class Operator:
    """KubeRay's operator: its image, and the version of its chart, which carries the custom resource definitions."""

    image: str
    version: str


@dataclass(frozen=True)
class Contents:
    """What an installation needs; nothing is fetched yet."""

    images: tuple[str, ...]
    models: tuple[str, ...]
    #: Models that the values describe themselves.
    own_models: tuple[Model, ...] = ()
    operator: Operator | None = None


class Image(msgspec.Struct, frozen=True):
    """One image of a bundle: an OCI archive for linux/amd64."""

    reference: str
    file: str
    #: Of its manifest: a registry that receives the archive unchanged serves it under the same digest.
    digest: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle holds; paths are relative to it."""

    format: int
    version: str
    images: tuple[Image, ...]
    charts: tuple[str, ...]
    models: tuple[str, ...]
    values: tuple[str, ...]


def contents(
    chart: Mapping[str, Any], rendered: Iterable[Any], values: Mapping[str, Any], *, operator: str | None = ""
) -> Contents:
    """What the chart needs with these values.

    `chart` is its Chart.yaml and `rendered` its objects. `operator` is another reference of the operator's image, ""
    the one of the chart's version, None where the cluster has an operator already. Raises Refusal.
    """
    images = {image for document in rendered for image in images_of(document)}
    if not images:
        raise Refusal("These values render no image at all: is this the chart's folder?")
    images.add(_tools_image(chart, values))
    found = None if operator is None else _operator_of(chart, operator)
    if found is not None:
        images.add(found.image)
    own = tuple(Model.model_validate(model) for model in values.get("ownModels") or ())
    names = {*models_of(values), *_drafts_of(values, own)}
    return Contents(tuple(sorted(images)), tuple(sorted(names)), own, found)


def images_of(document: Any) -> Iterator[str]:
    """Every image in a Kubernetes object, at any depth."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            if key == "image" and isinstance(value, str):
                yield value
            else:
                yield from images_of(value)
    elif isinstance(document, Sequence) and not isinstance(document, str):
        for value in document:
            yield from images_of(value)


def _tools_image(chart: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """The tools image, for preflight and status without a local Python; no template of the chart names it."""
    registry = str(values.get("images", {}).get("registry", "")).rstrip("/")
    return f"{registry + '/' if registry else ''}tools:{chart['appVersion']}"


def _operator_of(chart: Mapping[str, Any], reference: str) -> Operator:
    version = chart.get("annotations", {}).get(OPERATOR_ANNOTATION)
    if version is None:
        raise Refusal(f"Chart.yaml has no annotation {OPERATOR_ANNOTATION}, so which operator it needs is unknown.")
    return Operator(reference or _OPERATOR_IMAGE.format(version=version), version)


def models_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The models that any cell serves, by name."""
    return tuple(sorted({model["name"] for model in _entries(values)}))


def _drafts_of(values: Mapping[str, Any], own: Sequence[Model]) -> Iterator[str]:
    """What guesses tokens for them."""
    for entry in _entries(values):
        if (entry.get("speculation") or {}).get("method") == "eagle3" and (draft := draft_of(find(entry["name"], own))):
            yield draft.name


def _entries(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    lists = [values.get("models"), *((cell or {}).get("models") for cell in values.get("cells", {}).values())]
    return (model for models in lists for model in models or ())


def file_of(reference: str) -> str:
    """Path of an image's archive in a bundle: readable, and unique for each reference."""
    name = without_digest(reference).rpartition("/")[2].replace(":", "-")
    return f"images/{name}-{hashlib.sha256(reference.encode()).hexdigest()[:8]}.tar"


def without_digest(reference: str) -> str:
    """`host/name:tag`: what an image is called once it is here; `host/name:pinned` where a digest was all it had."""
    name, at, _ = reference.partition("@")
    return f"{name}:pinned" if at and ":" not in name.rpartition("/")[2] else name


def moved(reference: str, registry: str) -> str:
    """The reference in another registry: the host is replaced, the path below it stays."""
    host, _, path = without_digest(reference).partition("/")
    is_host = path and ("." in host or ":" in host or host == "localhost")
    return f"{registry.rstrip('/')}/{path if is_host else without_digest(reference)}"


class Files(Protocol):
    """The files of a bundle, wherever they are."""

    def names(self) -> set[str]:
        """Every file, relative to the bundle."""

    def open(self, name: str) -> IO[bytes]:
        """One of them, to read."""


class Folder:
    """A bundle as a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> set[str]:
        odd = [path for path in self.path.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())]
        if odd:
            raise Refusal(f"{odd[0]} is neither a file nor a folder: a bundle holds nothing else.")
        return {path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()}

    def open(self, name: str) -> IO[bytes]:
        return (self.path / name).open("rb")


class Archive:
    """A bundle as an uncompressed tar, read in place."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._members = {member.name: member for member in tar if not member.isdir()}
        odd = [name for name, member in self._members.items() if not member.isfile() or not _is_inside(name)]
        if odd:
            raise Refusal(f"{odd[0]} in the archive is no plain file inside it: a bundle holds nothing else.")

    def names(self) -> set[str]:
        return set(self._members)

    def open(self, name: str) -> IO[bytes]:
        file = self._tar.extractfile(self._members[name])
        if file is None:  # only folders have none
            raise Refusal(f"{name} in the archive cannot be read.")
        return file


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


@contextmanager
def opened(path: Path) -> Iterator[Files]:
    """The bundle at `path`; raises Refusal where there is none."""
    if path.is_dir():
        yield Folder(path)
        return
    try:
        with tarfile.open(path, "r:") as tar:
            yield Archive(tar)
    except FileNotFoundError:
        raise Refusal(f"There is no bundle {path}.") from None
    except tarfile.TarError:
        raise Refusal(f"{path} is cut off, or no bundle: carry it over again.") from None


@dataclass(frozen=True)
class Verified:
    """A verified bundle: it holds exactly the files it was made with."""

    files: Files
    manifest: Manifest
    #: Of SHA256SUMS, which names every other file: the one value to compare after copying.
    sha256: str


def seal(folder: Path, manifest: Manifest) -> str:
    """Write the manifest and the checksums of every file of `folder`, in place; returns the bundle's own checksum."""
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    files = Folder(folder)
    names = sorted(files.names() - {SUMS})
    text = "".join(f"{_sha256(files, name)}  {name}\n" for name in names)
    (folder / SUMS).write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def verify(files: Files, expected: str | None = None) -> Verified:
    """Compare every file with its checksum, and the bundle with `expected` if given; raises Refusal naming what differs.

    Missing, additional and damaged files are all refused: an archive that gained a file is not the one that was sent.
    """
    names = files.names()
    if SUMS not in names or MANIFEST not in names:
        raise Refusal(f"This is no bundle: it has no {SUMS if SUMS not in names else MANIFEST}.")
    text = _read(files, SUMS)
    own = hashlib.sha256(text).hexdigest()
    if expected is not None and own != expected.removeprefix("sha256:"):
        raise Refusal(f"This bundle's checksum is {own} and not the expected one: it is another bundle.")
    sums = _parsed(text.decode(errors="replace"))
    _refuse_difference(names - {SUMS}, set(sums))
    for name in sorted(sums):
        if _sha256(files, name) != sums[name]:
            raise Refusal(f"{name} is damaged (its sha256 differs): carry the bundle over again.")
    return Verified(files, _manifest(files, set(sums)), own)


def _parsed(text: str) -> dict[str, str]:
    """SHA256SUMS as a mapping from names to checksums."""
    sums: dict[str, str] = {}
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found is None or not _is_inside(found[2]) or found[2] in sums:
            raise Refusal(f"{SUMS} is damaged at the line {line[:80]!r}: carry the bundle over again.")
        sums[found[2]] = found[1]
    return sums


def _refuse_difference(there: set[str], listed: set[str]) -> None:
    if listed - there:
        raise Refusal(f"{min(listed - there)} is missing: carry the bundle over again.")
    if there - listed:
        raise Refusal(f"{min(there - listed)} is not part of this bundle: remove it, or find out who put it there.")


def _manifest(files: Files, listed: set[str]) -> Manifest:
    """The manifest, after verifying its own checksum."""
    text = _read(files, MANIFEST)
    try:
        version = msgspec.json.decode(text, type=dict[str, Any]).get("format")
        if version != FORMAT:
            raise Refusal(
                f"This bundle has format {version} and this command reads {FORMAT}: use the release that made it."
            )
        manifest = msgspec.json.decode(text, type=Manifest)
    except msgspec.MsgspecError:
        raise Refusal(f"The {MANIFEST} of this bundle cannot be read: use the release that made it.") from None
    named = {image.file for image in manifest.images} | set(manifest.charts) | set(manifest.values)
    named |= {f"models/{name}/{CHECKPOINT}" for name in manifest.models}
    if named - listed:
        raise Refusal(f"The {MANIFEST} names {min(named - listed)}, and the bundle has no such file.")
    return manifest


def _read(files: Files, name: str) -> bytes:
    with files.open(name) as file:
        return file.read()


def _sha256(files: Files, name: str) -> str:
    with files.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type] # any binary file is readable
