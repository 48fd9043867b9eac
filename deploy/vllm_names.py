"""vLLM's names: what this package takes of vLLM, and whether another version still has it. Reads source, runs none of it.

    pip download --no-deps vllm==0.33.0 && unzip -q vllm-0.33.0-*.whl -d next
    python deploy/vllm_names.py next/vllm        # what that version lacks; exit 1 if deploy/vllm.yaml says otherwise

deploy/vllm.yaml holds the names and what was found of the next version; tests/engine/test_vllm_names.py holds it against
the installed one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec
import yaml

#: Most of vLLM's source, and none of the names that are looked for.
_MODELS = frozenset({"model_executor", "models", "third_party"})
FILE = Path(__file__).with_name("vllm.yaml")


class Names(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """deploy/vllm.yaml."""

    #: The version that runs here, and the one that was read.
    installed: str
    next: str
    flags: tuple[str, ...]
    variables: tuple[str, ...]
    metrics: tuple[str, ...]
    routes: tuple[str, ...]
    #: Module → names that code of ours imports, and methods that it replaces or wraps.
    internals: Mapping[str, tuple[str, ...]]
    #: Of all these, those that the next version lacks, each with what takes its place.
    absent: Mapping[str, str]
    #: What else a move has to mind.
    notes: tuple[str, ...]


def names() -> Names:
    """The file's content; raises msgspec.ValidationError."""
    return msgspec.convert(yaml.safe_load(FILE.read_text()), Names)


def lacking(taken: Names, folder: Path) -> list[str]:
    """Names that the source of vLLM in `folder` does not have."""
    files = (path for path in folder.rglob("*.py") if path.relative_to(folder).parts[0] not in _MODELS)
    source = "\n".join(path.read_text(errors="replace") for path in files)
    asked: list[tuple[tuple[str, ...], Callable[[str, str], bool]]] = [
        (taken.flags, _has_flag),
        (taken.variables, _has_text),
        (taken.metrics, _has_metric),
        (taken.routes, _has_text),
    ]
    absent = [name for group, has in asked for name in group if not has(source, name)]
    inner = [(module, name) for module, found in taken.internals.items() for name in found]
    return absent + [f"{module}.{name}" for module, name in inner if not _has_inner(folder, module, name)]


def _has_text(source: str, name: str) -> bool:
    return f'"{name}"' in source


def _has_flag(source: str, flag: str) -> bool:
    """A flag is spelled out, or made from a field of the arguments' class."""
    plain = flag.removeprefix("--no-").removeprefix("--")
    return _has_text(source, f"--{plain}") or bool(
        re.search(rf"^    {plain.replace('-', '_')}: ", source, re.MULTILINE)
    )


def _has_metric(source: str, metric: str) -> bool:
    return _has_text(source, re.sub("_(total|sum|count)$", "", metric))


def _has_inner(folder: Path, module: str, name: str) -> bool:
    path = folder.joinpath(*module.split(".")[1:])
    files = [it for it in (path.with_suffix(".py"), path / "__init__.py") if it.is_file()]
    owner, _, method = name.partition(".")
    defined = re.compile(rf"^(class|def|async def) {owner}\b|^{owner}\b", re.MULTILINE)
    inside = re.compile(rf"^    (async )?def {method}\b", re.MULTILINE)
    return any(map(partial(_is_in, defined), files)) and (not method or any(map(partial(_is_in, inside), files)))


def _is_in(pattern: re.Pattern[str], file: Path) -> bool:
    return bool(pattern.search(file.read_text()))


def main(arguments: list[str]) -> int:
    """Print what the version in a folder lacks; 1 where the file says otherwise."""
    taken = names()
    found = lacking(taken, Path(arguments[0]))
    print("\n".join(found) or "It has every name that is taken.")
    return int(set(found) != set(taken.absent))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
