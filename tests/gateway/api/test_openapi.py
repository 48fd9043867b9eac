"""OpenAPI: the document says what there is, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import pytest
import schemathesis
from jsonschema import Draft202012Validator

from serving.config import ConsoleSettings
from serving.gateway.api.openapi import document, is_taken
from serving.gateway.dialects import DIALECTS
from serving.gateway.dialects.fields import Disposition
from serving.gateway.http.routing import Entry
from tests.gateway.world import CHAT, World, running_gateway


async def served(world: World) -> dict[str, Any]:
    answer = await world.ask("GET", "/openapi.json", headers={})
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    return answer.json


async def test_it_is_openapi_3_1(world: World) -> None:
    """Valid as a whole, with a sentence and errors for every operation, and one name for one thing."""
    found = await served(world)
    schemathesis.openapi.from_dict(found).validate()
    operations = [it for of_path in found["paths"].values() for it in of_path.values()]
    assert len({it["operationId"] for it in operations}) == len(operations)
    tags = {it["name"] for it in found["tags"]}
    for operation in operations:
        assert operation.get("description") or operation.get("summary")
        assert {"4XX", "5XX"} < set(operation["responses"]) and set(operation["tags"]) <= tags
    for schema in found["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    named = set(re.findall(r"#/components/schemas/([^\"]+)", str(found).replace("'", '"')))
    assert named <= set(found["components"]["schemas"])


async def test_its_fields_are_those_that_a_request_may_have(world: World) -> None:
    """Of every dialect, by the table that is in force: those that no key may send are not there, and no others are."""
    paths = (await served(world))["paths"]
    for path, dialect in DIALECTS.items():
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["properties"]) == {name for name, it in dialect.fields.items() if is_taken(it)}
        assert set(schema["required"]) == {name for name, it in dialect.fields.items() if it.is_required}
        for name, shown in schema["properties"].items():
            assert shown["x-disposition"] == dialect.fields[name].disposition and shown["description"]
            assert "](" not in shown["description"], "a decision's page is not here"


def test_a_field_that_is_sent_on_says_what_it_takes() -> None:
    """By the type that checks it: a document that says nothing of `messages` would help no one."""
    for path, dialect in DIALECTS.items():
        for name, field in dialect.fields.items():
            if field.disposition is Disposition.HONOURED:
                assert hasattr(field.check, "kind"), f"{path} {name}"


async def test_its_routes_are_those_that_answer(world: World) -> None:
    """Each path is there in the gateway, with these methods and no others."""
    paths = (await served(world))["paths"]
    for path, operations in paths.items():
        place = re.sub(r"\{[a-z_]+\}", "x", path)
        for method in ("get", "put", "post", "patch", "delete"):
            answer = await world.ask(method.upper(), place, headers={"Authorization": "Bearer sk-nobody"})
            if path.startswith("/admin/v1/"):
                assert answer.status == 401, "no stranger is told which there are"
            elif method in operations:
                assert answer.status != 405 and b"Invalid URL" not in answer.body, f"{method} {path}"
            else:
                assert answer.status == 405, f"{method} {path}"


async def test_an_answer_has_the_keys_that_it_says(world: World) -> None:
    """As a client of the document reads it."""
    found = await served(world)
    for path, body, status in (
        ("/v1/chat/completions", CHAT, 200),
        ("/v1/models", None, 200),
        ("/health/ready", None, 200),
        ("/console/session", None, 200),
        ("/v1/messages", CHAT, 400),
    ):
        method = "GET" if body is None else "POST"
        answer = await world.ask(method, path, body)
        responses = found["paths"][path][method.lower()]["responses"]
        assert answer.status == status, answer.body
        content = responses.get(str(status), responses.get("4XX"))["content"]["application/json"]
        schema = content["schema"] | {"components": found["components"]}
        Draft202012Validator(schema).validate(answer.json)


async def test_a_gateway_without_a_console_says_nothing_of_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The document is of this gateway, as its settings have it."""
    off = ConsoleSettings(enabled=False)
    async with running_gateway(tmp_path_factory.mktemp("off"), is_awaited=False, console=off) as world:
        paths = set((await served(world))["paths"])
    assert not any(path.startswith("/console") for path in paths) and "/docs" in paths


def test_a_route_has_to_say_what_it_is_about() -> None:
    """One that does not is found by every test of this file."""
    with pytest.raises(LookupError, match="GET /new"):
        document([Entry("GET", "/new", None)], {"paths": {}, "components": {"schemas": {}}})
