"""Results: the lines of a batch's files, as OpenAI's API has them."""

from __future__ import annotations

import json

from serving.gateway.http.bodies import OpenAIError
from serving.gateway.stored.batches import results
from serving.gateway.stored.batches.jsonl import Line, request_of

RAW = b'{"custom_id": "mine", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m"}}'
LINE = Line(4, 7, 100, RAW)


def test_an_answer_an_error_and_what_was_not_called() -> None:
    """One line each, the answer as the engine gave it; errors name the line of the input."""
    request = request_of(RAW)
    answered = results.rendered(LINE, request, "r1", 200, b'{"data":[1.50]}')
    failed = results.refused(LINE, request, "r2", OpenAIError("No.", "invalid_request_error", "stream", None))
    left = results.left(LINE, request, "r3", results.EXPIRED)

    assert [it.count(b"\n") for it in (answered, failed, left)] == [1, 1, 1] and b"1.50" in answered
    assert json.loads(answered) == {
        "id": "r1",
        "custom_id": "mine",
        "response": {"status_code": 200, "request_id": "r1", "body": {"data": [1.5]}},
        "error": None,
    }
    assert json.loads(failed)["response"]["body"]["error"]["message"] == "No."
    assert json.loads(left) == {
        "id": "r3",
        "custom_id": "mine",
        "response": None,
        "error": {"code": "batch_expired", "message": results.EXPIRED.message},
        "line": 7,
    }
