"""Several models in one cell: each comes, changes and goes without the others' engines noticing."""

import json
from pathlib import Path

import openai
import pytest

from serving.catalog import find
from tests.long.test_embeddings import DIMENSIONS, MINILM
from tests.stack.conftest import SMOLLM2
from tests.stack.running import Stack, running
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

QUESTION = [{"role": "user", "content": "Name the capital of France."}]


def serving(*models: dict[str, object]) -> dict[str, str]:
    return {"SERVING_MODELS": json.dumps(models)}


def server_pids(stack: Stack, model: str) -> set[int]:
    """vLLM's servers of one model."""
    lines = {process.pid: process.cmdline() for process in stack.members()}
    servers = {pid: line for pid, line in lines.items() if line[1:3] == ["-m", "vllm.entrypoints.cli.main"]}
    return {pid for pid, line in servers.items() if model in line}


def answers(client: openai.OpenAI) -> bool:
    said = client.chat.completions.create(model=SMOLLM2, messages=QUESTION, temperature=0, max_tokens=16)
    return "Paris" in (said.choices[0].message.content or "")


def embeds(client: openai.OpenAI) -> bool:
    try:
        vector = client.embeddings.create(model=MINILM, input="A cat sits on the mat.").data[0].embedding
    except openai.NotFoundError:
        return False
    return len(vector) == DIMENSIONS


def test_a_model_comes_changes_and_goes_beside_another(tmp_path: Path) -> None:
    """An embedding model joins a chat model, is changed and removed: the chat model's engine stays, and answers throughout."""
    chat: dict[str, object] = {"name": SMOLLM2}
    with running(tmp_path, SMOLLM2, serving(chat)) as stack:
        client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0)
        before = server_pids(stack, SMOLLM2)
        assert len(before) == 1 and answers(client) and not embeds(client)

        stack.resettle(serving(chat, {"name": MINILM}))
        until(lambda: MINILM in {card.id for card in client.models.list()}, 60)
        until(lambda: len(stack.ready(MINILM)) == 1, 300, 0.5)
        assert embeds(client) and answers(client)

        first = server_pids(stack, MINILM)
        described = find(MINILM).model_copy(update={"context_tokens": 128}).model_dump(mode="json")
        stack.resettle(serving(chat, {"name": MINILM}) | {"SERVING_OWN_MODELS": json.dumps([described])})
        until(lambda: stack.ready(MINILM) and server_pids(stack, MINILM).isdisjoint(first), 300, 0.5)
        assert embeds(client) and server_pids(stack, SMOLLM2) == before

        stack.resettle(serving(chat))
        until(lambda: not server_pids(stack, MINILM), 120, 0.5)
        until(lambda: MINILM not in {card.id for card in client.models.list()}, 60)
        assert answers(client) and server_pids(stack, SMOLLM2) == before
