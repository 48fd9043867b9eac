"""One trace from the client through the gateway to vLLM: its span lies below the gateway's, in the client's trace."""

from pathlib import Path

import pytest

from tests.collector import collecting
from tests.stack.conftest import SMOLLM2
from tests.stack.http import bearer, call
from tests.stack.running import running
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

CHAT = {"model": SMOLLM2, "messages": [{"role": "user", "content": "canary-77c1"}], "max_tokens": 8}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
#: vLLM's one span of a request (0.32).
VLLM = "llm_request"
ROUTE = "/v1/chat/completions"


def test_a_trace_reaches_the_engine(tmp_path: Path) -> None:
    """Three spans, each below the one before; nothing that was said is in any of them."""
    with collecting() as collector:
        endpoints = {
            "SERVING_GATEWAY__TRACES_ENDPOINT": collector.endpoint,
            "SERVING_ENGINE__TRACES_ENDPOINT": collector.endpoint,
        }
        with running(tmp_path, SMOLLM2, endpoints) as stack:
            context = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
            status, _, answer = call(stack.url, "POST", ROUTE, CHAT, bearer(stack.key) | context)
            assert status == 200, answer
            until(lambda: len(collector.of(TRACE)) == 3, 60, 0.2)
        spans = collector.of(TRACE)
        request, engine, vllm = spans[f"POST {ROUTE}"], spans["engine"], spans[VLLM]
        assert request.parent_span_id.hex() == "00f067aa0ba902b7"
        assert engine.parent_span_id == request.span_id and vllm.parent_span_id == engine.span_id
        assert "canary" not in str(collector.spans)
