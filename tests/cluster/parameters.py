"""What the suite is told: environment variables, read once. conftest.py says what each means."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

PREFIX = "CLUSTER_TEST_"
#: The images of the chart's values, by their keys.
IMAGES = ("gateway", "head", "engine")


class WrongParameter(Exception):
    """A variable that says nothing usable; the message is for whoever set it."""


@dataclass(frozen=True)
class Parameters:
    """One field for each variable: CLUSTER_TEST_READY_TIMEOUT_S is `ready_timeout_s`."""

    context: str = ""
    namespace: str = ""
    operator_namespace: str = ""
    pod_security: str = "restricted"
    registry: str = ""
    tag: str = ""
    gateway_repository: str = ""
    gateway_tag: str = ""
    head_repository: str = ""
    head_tag: str = ""
    engine_repository: str = ""
    engine_tag: str = ""
    loadtest_repository: str = ""
    loadtest_tag: str = ""
    upgrade_tag: str = ""
    pull_policy: str = ""
    values: tuple[Path, ...] = ()
    ready_timeout_s: float = 1800.0
    leave_timeout_s: float = 900.0
    stream_tokens: int = 0
    keep: bool = False
    required: bool = False
    folder: Path = Path(".cache") / "cluster"

    def image(self, name: str) -> dict[str, str]:
        """`images.<name>` as the values have it, only what was given."""
        given = {
            "repository": getattr(self, f"{name}_repository"),
            "tag": getattr(self, f"{name}_tag") or self.tag,
            "pullPolicy": self.pull_policy,
        }
        return {key: value for key, value in given.items() if value}


def parameters(environment: Mapping[str, str]) -> Parameters:
    """What these variables say. Raises WrongParameter on one that does not exist or cannot be read."""
    readers = {field.name: _READERS[str(field.type)] for field in fields(Parameters)}
    given: dict[str, object] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in readers:
            known = ", ".join(f"{PREFIX}{it.upper()}" for it in readers)
            raise WrongParameter(f"There is no {variable}; there are {known}.")
        try:
            given[name] = readers[name](text)
        except ValueError as error:
            raise WrongParameter(f"{variable}: {error}.") from None
    return Parameters(**given)  # type: ignore[arg-type]  # read by each field's own reader


def _boolean(text: str) -> bool:
    if text not in {"", "0", "1"}:
        raise ValueError(f"'{text}' is neither 1 nor 0")
    return text == "1"


def _paths(text: str) -> tuple[Path, ...]:
    found = tuple(Path(it) for it in text.split(os.pathsep) if it)
    for path in found:
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
    return found


_READERS: dict[str, Callable[[str], object]] = {
    "str": str,
    "float": float,
    "int": int,
    "bool": _boolean,
    "Path": Path,
    "tuple[Path, ...]": _paths,
}
