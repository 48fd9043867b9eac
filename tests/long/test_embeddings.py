"""A real embedding model through the whole stack: right vectors, an exact bill, and clear refusals of what it is not."""

import json
import math
from collections.abc import Iterator

import openai
import pytest

from serving.catalog import find
from serving.engine.checkpoints import store as checkpoints
from tests.stack.http import bearer, call
from tests.stack.running import CACHE, Stack, running
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

MINILM = "all-minilm-l6-v2"
DIMENSIONS = 384
CAT, KITTEN, RATES = TEXTS = [
    "A cat sits on the mat.",
    "The kitten is lying on a rug.",
    "Interest rates rose in March.",
]
#: Measured on these texts: 0.9999 in bfloat16; another pooling gives 0.5 to 0.65 (CLS) or 0.8 to 0.92 (last token).
SAME_COSINE = 0.999
MESSAGES = [{"role": "user", "content": "Hi"}]
NOT_FOR_EMBEDDERS: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 2},
}


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("minilm"), MINILM) as it:
        yield it


@pytest.fixture(scope="module")
def client(embedder: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{embedder.url}/v1", api_key=embedder.key, max_retries=0)


def cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True)) / math.hypot(*left) / math.hypot(*right)


def test_neighbours_in_meaning_are_neighbours_in_space(client: openai.OpenAI) -> None:
    """The official client, which asks for base64 by itself, gets unit vectors in the order of its texts."""
    answer = client.embeddings.create(model=MINILM, input=TEXTS)
    cat, kitten, rates = (item.embedding for item in answer.data)
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert len(cat) == DIMENSIONS and math.hypot(*cat) == pytest.approx(1, abs=0.01)
    assert cosine(cat, kitten) > 0.4 > 0.2 > cosine(cat, rates)


def test_floats_and_base64_are_the_same_numbers(client: openai.OpenAI) -> None:
    """Both formats carry 32-bit floats."""
    packed = client.embeddings.create(model=MINILM, input=CAT).data[0].embedding
    plain = client.embeddings.create(model=MINILM, input=CAT, encoding_format="float").data[0].embedding
    assert plain == pytest.approx(packed, rel=1e-6)


def test_the_vectors_are_the_models_own(client: openai.OpenAI) -> None:
    """What the model card prescribes, computed without vLLM (the mean over tokens in float32), points the same way."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = checkpoints.folder_of(find(MINILM), CACHE)
    tokens = AutoTokenizer.from_pretrained(folder)(CAT, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
    expected = states[0].mean(dim=0).tolist()
    assert cosine(client.embeddings.create(model=MINILM, input=CAT).data[0].embedding, expected) > SAME_COSINE


def test_a_row_holds_what_the_engine_counted(embedder: Stack, client: openai.OpenAI) -> None:
    """Prompt tokens of several texts, exact, and no completion tokens."""
    before = embedder.engine_metrics()["vllm:prompt_tokens_total"]
    answer = client.embeddings.with_raw_response.create(model=MINILM, input=TEXTS)
    usage = answer.parse().usage
    until(lambda: embedder.engine_metrics()["vllm:prompt_tokens_total"] == before + usage.prompt_tokens)
    row = embedder.row(answer.headers["x-request-id"])
    assert (row.route, row.model, row.status, row.outcome) == ("/v1/embeddings", MINILM, 200, "ok")
    assert (row.prompt_tokens, row.completion_tokens, row.estimated_by) == (usage.prompt_tokens, 0, None)


def test_the_ledger_equals_the_engine(embedder: Stack, client: openai.OpenAI) -> None:
    """Its replica's questions and its calls are all that it has counted."""
    client.embeddings.create(model=MINILM, input=TEXTS)
    found = embedder.ledger_check()
    assert found["verdict"] == "equal" and found["billed"]["completed"]["prompt_tokens"] > 0, found


@pytest.mark.parametrize("route", NOT_FOR_EMBEDDERS)
def test_what_an_embedder_cannot_do_is_said(embedder: Stack, route: str) -> None:
    """A generating route is a 400 that names the model and the route, streamed or not, and costs nothing."""
    for extra in ({}, {"stream": True}):
        body = NOT_FOR_EMBEDDERS[route] | {"model": MINILM} | extra
        status, headers, answer = call(embedder.url, "POST", route, body, bearer(embedder.key))
        message = json.loads(answer)["error"]["message"]
        assert status == 400 and MINILM in message and route in message, answer
        row = embedder.row(headers["x-request-id"])
        assert (row.outcome, row.prompt_tokens, row.completion_tokens) == ("rejected", 0, 0)


def test_a_text_over_the_context_is_refused(embedder: Stack) -> None:
    """Nothing is cut silently: 400 with OpenAI's code."""
    body = {"model": MINILM, "input": "word " * 300}
    status, _, answer = call(embedder.url, "POST", "/v1/embeddings", body, bearer(embedder.key))
    assert status == 400 and json.loads(answer)["error"]["code"] == "context_length_exceeded", answer
