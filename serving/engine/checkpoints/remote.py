"""Remote: a checkpoint from a model hub or an object store. Runs where weights are fetched, never where they are served.

Credentials come from the environment, as the two libraries know them: HF_TOKEN, HF_ENDPOINT; AWS_*, GOOGLE_*, AZURE_*.
Only files at the top of a repository or prefix are taken: some keep the same weights twice more below it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import msgspec
import obstore
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError, of whichever client it brings
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from obstore.exceptions import BaseError
from obstore.store import from_url

from serving.catalog import HubSource, ObjectStoreSource
from serving.engine.checkpoints import child
from serving.engine.checkpoints.recipe import Report
from serving.errors import Refusal

_MIB = 2**20
#: Seconds between two progress lines of a download.
_REPORT_EVERY_S = 15.0
#: Bytes of an object that are held in memory at once.
_CHUNK_BYTES = 16 * _MIB
#: Suffix of an incomplete file.
_PART = ".part"
#: A repository's own pages and its weights in other formats.
_IGNORED = ["*/*", "*.md", "*.png", "*.pdf", "*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx"]


def fetch(source: HubSource | ObjectStoreSource, folder: Path, report: Report) -> None:
    """Put the files of `source` into `folder`; raises Refusal in one sentence that says what to do."""
    with _progress_reported(folder, report):
        if isinstance(source, HubSource):
            _from_hub(source, folder)
        else:
            _from_object_store(source, folder)
    if not (folder / "config.json").is_file():
        raise Refusal(f"The {source} has no config.json: it holds no checkpoint.")


def _from_hub(source: HubSource, folder: Path) -> None:
    if HF_HUB_OFFLINE:
        raise Refusal(f"The {source} is not asked while HF_HUB_OFFLINE is set: set it to 0 where weights are fetched.")
    try:
        huggingface_hub.snapshot_download(
            source.id, revision=source.revision, local_dir=folder, ignore_patterns=_IGNORED
        )
    except GatedRepoError:
        reason = "asks for its licence to be accepted: do so, and set HF_TOKEN to a token of yours"
    except RevisionNotFoundError:
        reason = f"has no revision {source.revision}: correct it"
    except RepositoryNotFoundError:
        reason = "does not exist, or HF_TOKEN may not see it: correct the name or the token"
    except (LocalEntryNotFoundError, HTTPError):  # without a connection it falls back to its own cache
        reason = "cannot be reached, or is in trouble: check the network, the proxy and HF_ENDPOINT"
    else:
        return
    raise Refusal(f"The {source} {reason}.")


def _from_object_store(source: ObjectStoreSource, folder: Path) -> None:
    try:
        store = from_url(source.url)
        listed = store.list_with_delimiter()["objects"]
        if not listed:
            raise Refusal(f"The {source} holds no file: correct its prefix.")
        for entry in listed:
            name = Path(entry["path"]).name
            if any(fnmatch(name, pattern) for pattern in _IGNORED):
                continue
            if (folder / name).is_file() and (folder / name).stat().st_size == entry["size"]:
                continue  # fetched before an interruption
            part = folder / f"{name}{_PART}"
            with part.open("wb") as file:
                for chunk in obstore.get(store, entry["path"]).stream(min_chunk_size=_CHUNK_BYTES):
                    file.write(chunk)
            part.rename(folder / name)
    except BaseError as error:
        raise Refusal(
            f"The {source} could not be read ({type(error).__name__}): check its address, the credentials and the network."
        ) from None


@contextmanager
def _progress_reported(folder: Path, report: Report) -> Iterator[None]:
    """Report every few seconds how much has arrived."""
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(_REPORT_EVERY_S):
            report(f"{sum(path.stat().st_size for path in _files(folder)) // _MIB} MiB are here")

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                yield path
        except OSError:
            continue  # it has just been renamed


def main() -> int:
    source = msgspec.json.decode(sys.argv[2])
    kind = HubSource if source["kind"] == "hub" else ObjectStoreSource
    return child.main(lambda folder, report: fetch(kind.model_validate(source), folder, report), Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
