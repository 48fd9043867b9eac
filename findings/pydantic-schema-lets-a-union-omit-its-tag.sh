#!/bin/sh
# pydantic 2.14.3: the JSON schema of a union told apart by a key takes values without that key, which the validator refuses
#
# Expected: in a union with `discriminator="kind"` the key decides which shape a value has, so the schema names it in each shape's
#   "required" as long as the validator refuses values without it; a default, `kind: Literal["hub"] = "hub"`, serves Python's callers.
# Seen: {"id": "x"} is refused ("Unable to extract tag using discriminator 'kind'"), and the schema takes it: the default has taken the
#   key out of "required". OpenAPI's `discriminator` beside it says nothing to a validator of JSON Schema. A form, a chart or a tool call
#   that was checked against the schema is then refused by the program that the schema was made from. By itself, the shape takes it.
# Version: pydantic 2.14.3, pydantic-core 2.50.4, jsonschema 4.26.0, Python 3.11, Linux x86-64.
# Output seen:
#   with a default: HubSource requires ["id"], the schema takes {"id": "x"}: True, the union: False, the shape alone: True
#   without: PlainHub requires ["kind", "id"], the schema takes {"id": "x"}: False, the union: False, the shape alone: False
# Source: https://docs.pydantic.dev/latest/concepts/unions/#discriminated-unions (says nothing of defaults), and the same in a program
#   of others: https://github.com/morluto/flameox/issues/483
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pydantic==2.14.3 jsonschema==4.26.0
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
from typing import Annotated, Literal

from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, TypeAdapter, ValidationError


class HubSource(BaseModel):
    kind: Literal["hub"] = "hub"
    id: str


class MountedSource(BaseModel):
    kind: Literal["mounted"] = "mounted"
    path: str


class PlainHub(BaseModel):
    kind: Literal["hub"]
    id: str


class PlainMounted(BaseModel):
    kind: Literal["mounted"]
    path: str


UNTAGGED = {"id": "x"}
CASES = {
    "with a default": (HubSource, MountedSource),
    "without": (PlainHub, PlainMounted),
}


def takes(kind):
    try:
        kind.validate_python(UNTAGGED)
    except ValidationError:
        return False
    return True


seen = []
for name, (hub, mounted) in CASES.items():
    union = TypeAdapter(Annotated[hub | mounted, Field(discriminator="kind")])
    schema = union.json_schema()
    required = schema["$defs"][hub.__name__]["required"]
    answers = [Draft202012Validator(schema).is_valid(UNTAGGED), takes(union), takes(TypeAdapter(hub))]
    print(
        f"{name}: {hub.__name__} requires {json.dumps(required)}, the schema takes {json.dumps(UNTAGGED)}: {answers[0]},"
        f" the union: {answers[1]}, the shape alone: {answers[2]}"
    )
    seen.append((required, answers))
expected = [(["id"], [True, False, True]), (["kind", "id"], [False, False, False])]
sys.exit(0 if seen == expected else 1)
PYTHON
