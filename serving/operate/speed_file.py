"""Speed file: what `serving accept` measured of an engine, as YAML. `serving plan --speed` reads it, and its content is the
value of a model's `speed` in the settings and in the chart's values, for the autoscaler.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import NamedTemporaryFile

import pydantic
import yaml

from serving.catalog import Model, Speed, is_measured_of
from serving.errors import Refusal

_HEAD = """\
# Measured by `serving accept`. `serving plan --speed FILE` takes it; as `speed` of a model in the settings (`models:` in the
# chart's values) the autoscaler does.
"""


def prepare(file: Path) -> None:
    """Raises Refusal, before anything is measured, where the file could not be written; leaves it as it is."""
    try:
        with file.open("a") if file.exists() else NamedTemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise _unwritable(file, error) from None


def write(file: Path, fitted: Speed) -> None:
    """Raises Refusal where it cannot."""
    try:
        file.write_text(_HEAD + yaml.safe_dump(fitted.model_dump(mode="json"), sort_keys=False))
    except OSError as error:
        raise _unwritable(file, error) from None


def _unwritable(file: Path, error: OSError) -> Refusal:
    return Refusal(f"The speed file {file} cannot be written: {error.strerror}.")


def read(file: Path, model: Model) -> Speed:
    """What was measured of `model`, or of its base. Raises Refusal for anything else."""
    try:
        fitted = Speed.model_validate(yaml.safe_load(file.read_text()))
    except OSError as error:
        raise Refusal(f"The speed file {file} cannot be read: {error.strerror}.") from None
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        why = f"'{key}': {first['msg'].lower()}" if key else "it has no keys"
        raise Refusal(f"{file} is no speed file ({why}): `serving accept --speed-out` writes one.") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError):
        raise Refusal(f"{file} is no speed file: `serving accept --speed-out` writes one.") from None
    if not is_measured_of(fitted, model):
        raise Refusal(
            f"The speed file {file} was measured of {fitted.model}, not of {model.name}: `serving accept --model"
            f" {model.name}=PROFILE --speed-out` measures that."
        )
    return fitted
