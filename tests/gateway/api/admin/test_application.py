"""The application behind the front: its routes, and the document that describes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.config import (
    ChecksConfig,
    GenerationConfig,
    PositiveDataAcceptanceConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.core.result import Ok

from serving.errors import MethodNotAllowed, RouteNotFound, UnknownParameter
from serving.gateway.api.admin import application
from tests.gateway.api.admin.office_hours import Running

#: Routes whose pages begin at places that are no names.
PLACED = {"/admin/v1/calls", "/admin/v1/audit"}


def test_the_document_is_openapi_3_1() -> None:
    """With a name for every operation, a sentence, the errors of this gateway and no others."""
    document = application.make().app.openapi()
    assert document["openapi"].startswith("3.1.")
    operations = [it for of_path in document["paths"].values() for it in of_path.values()]
    assert len({it["operationId"] for it in operations}) == len(operations)
    for operation in operations:
        assert operation.get("description") or operation.get("summary")
        assert {"4XX", "5XX"} < set(operation["responses"]) and "422" not in operation["responses"]
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_a_request_has_one_route_or_an_error_that_says_why() -> None:
    """Known before a thread is taken: its template, its parameters."""
    made = application.make()
    assert made.find("GET", "/admin/v1/keys/abc").template == "/admin/v1/keys/{key_id}"
    assert made.find("HEAD", "/admin/v1/keys").template == "/admin/v1/keys"
    with pytest.raises(RouteNotFound):
        made.find("GET", "/admin/v1/keys/abc/def/ghi")
    with pytest.raises(MethodNotAllowed) as refused:
        made.find("POST", "/admin/v1/keys/abc")
    assert refused.value.allowed == "DELETE, GET, PATCH"
    made.find("GET", "/admin/v1/keys").require_known({"after", "limit"})
    with pytest.raises(UnknownParameter):
        made.find("GET", "/admin/v1/keys").require_known({"after", "page"})


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path) as one:
        yield one


@pytest.mark.parametrize("examples", [6, pytest.param(60, marks=pytest.mark.long)])
def test_the_running_gateway_is_what_its_document_says(running: Running, examples: int) -> None:
    """schemathesis asks every route of a real gateway, in order and out of order: nothing is a 5xx, answers have the shapes
    that are described, and what is not described is refused."""
    authorised = {"Authorization": f"Bearer {running.key}"}
    generation = GenerationConfig(modes=list(GenerationMode), max_examples=examples, with_security_parameters=False)
    # What is in order may still be meant for another revision.
    accepted = PositiveDataAcceptanceConfig(expected_statuses=["2xx", "404", "409", "412"])
    checks = ChecksConfig(positive_data_acceptance=accepted)
    projects = ProjectsConfig(default=ProjectConfig(generation=generation, checks=checks))
    schema = schemathesis.openapi.from_url(
        f"{running.url}/admin/v1/openapi.json", headers=authorised, config=SchemathesisConfig(projects=projects)
    )
    # Its own document is not among what it describes to a client that has it.
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    assert len(operations) == len(application.make().app.routes) - 1
    for operation in operations:
        takes_something = operation.definition.raw.keys() & {"parameters", "requestBody"}
        for mode in GenerationMode if takes_something else [GenerationMode.POSITIVE]:
            ask(operation.as_strategy(generation_mode=mode), authorised, examples)


def ask(cases: SearchStrategy[schemathesis.Case[Any]], headers: dict[str, str], examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def ask_each(case: schemathesis.Case[Any]) -> None:
        if case.operation.path in PLACED and case.query:
            # A place among calls or events is what a page named: a word that was made up is refused, and its schema cannot say so.
            case.query.pop("after", None)
        case.call_and_validate(headers=headers)

    ask_each()
