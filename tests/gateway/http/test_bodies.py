"""Bodies: an error as bytes and headers, in either API's shape."""

from __future__ import annotations

import json

import pytest

from serving.errors import ApiError, GatewayFull, InvalidRequest, MethodNotAllowed, Unauthenticated
from serving.gateway.http.bodies import ANTHROPIC_TYPES, anthropic_body, error_headers, openai_body


def every_error(root: type[ApiError] = ApiError) -> list[type[ApiError]]:
    return [root, *(lower for child in root.__subclasses__() for lower in every_error(child))]


def test_openais_shape_has_all_four_fields() -> None:
    """Each is there, if only as null: official clients read them without asking."""
    assert json.loads(openai_body(InvalidRequest("Bad.", param="n"), "r")) == {
        "error": {"message": "Bad.", "type": "invalid_request_error", "param": "n", "code": None}
    }


def test_anthropics_shape_names_the_request() -> None:
    """Its types go by status."""
    assert json.loads(anthropic_body(Unauthenticated("No."), "req-1")) == {
        "type": "error",
        "error": {"type": "authentication_error", "message": "No."},
        "request_id": "req-1",
    }


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
def test_every_error_has_an_anthropic_type(error: type[ApiError]) -> None:
    """A client's mistake is never called a failure of the API; 408 and 5xx without a name of their own are `api_error`."""
    named = ANTHROPIC_TYPES.get(error.status, "api_error")
    assert named != "api_error" or error.status in (408, 500, 502)


@pytest.mark.parametrize(("after_s", "said"), [(1, (b"1000", b"1")), (0.25, (b"250", b"1")), (5, (b"5000", b"5"))])
def test_a_time_to_retry_is_said_in_both_units(after_s: float, said: tuple[bytes, bytes]) -> None:
    """openai-python reads milliseconds first; whole seconds are rounded up, so that no client comes too early."""
    headers = dict(error_headers(GatewayFull("Full.", retry_after_s=after_s)))
    assert (headers[b"retry-after-ms"], headers[b"retry-after"]) == said and headers[b"x-should-retry"] == b"true"


def test_each_error_has_the_headers_it_needs_and_no_more() -> None:
    """401 its scheme, 405 what is allowed, and no time to retry where there is none."""
    assert dict(error_headers(InvalidRequest("Bad."))) == {b"x-should-retry": b"false"}
    assert dict(error_headers(Unauthenticated("No.")))[b"www-authenticate"] == b"Bearer"
    assert dict(error_headers(MethodNotAllowed("No.", allowed="GET")))[b"allow"] == b"GET"
