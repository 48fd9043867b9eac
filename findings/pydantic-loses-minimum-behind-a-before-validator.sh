#!/bin/sh
# pydantic 2.14.3: a bound that stands behind a BeforeValidator is checked, but missing from the JSON schema, which has a keyword of no draft
#
# Expected: `Annotated[int, BeforeValidator(f), Field(ge=0)]` refuses -1 and its schema has "minimum": 0, as with the two in the other
#   order: the validator changes what comes in, not what a value must be. Or, where the bound cannot be said, the schema has nothing.
# Seen: -1 is refused, and the schema says {"type": "integer", "ge": 0}. "ge" is pydantic's own word: JSON Schema knows no such keyword,
#   validators pass over it, and so the schema allows -1. An OpenAPI document made from it promises clients what the server refuses.
# Version: pydantic 2.14.3, pydantic-core 2.50.4, jsonschema 4.26.0, Python 3.11, Linux x86-64.
# Output seen:
#   bound first: {"minimum": 0, "type": "integer"}, its schema takes -1: False
#   validator first: {"ge": 0, "type": "integer"}, its schema takes -1: True
#   -1 is refused by both models: True
# Source: https://github.com/pydantic/pydantic/issues/11576, and pull request 13417 there, which would change it
#   https://json-schema.org/draft/2020-12/json-schema-validation#section-6.2
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pydantic==2.14.3 jsonschema==4.26.0
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
from typing import Annotated

from jsonschema import Draft202012Validator
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

KINDS = {
    "bound first": TypeAdapter(Annotated[int, Field(ge=0), BeforeValidator(lambda value: value)]),
    "validator first": TypeAdapter(Annotated[int, BeforeValidator(lambda value: value), Field(ge=0)]),
}


def refuses(kind):
    try:
        kind.validate_python(-1)
    except ValidationError:
        return True
    return False


schemas = {name: kind.json_schema() for name, kind in KINDS.items()}
taken = {name: Draft202012Validator(schema).is_valid(-1) for name, schema in schemas.items()}
for name, schema in schemas.items():
    print(f"{name}: {json.dumps(schema, sort_keys=True)}, its schema takes -1: {taken[name]}")
refused = all(refuses(kind) for kind in KINDS.values())
print(f"-1 is refused by both models: {refused}")
expected = [{"minimum": 0, "type": "integer"}, {"ge": 0, "type": "integer"}]
sys.exit(0 if refused and list(schemas.values()) == expected and list(taken.values()) == [False, True] else 1)
PYTHON
