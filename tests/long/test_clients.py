"""The clients of tests/clients before a real engine: what its stand-in recites there, tiny-gpt-oss says here.

Command lines are left out: tiny-gpt-oss knows no conversation with their instructions and tools.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.catalog import MODELS
from serving.engine.checkpoints import manifest
from serving.engine.checkpoints import store as checkpoints
from serving.engine.checkpoints.recipes import recipe_of
from tests.clients.catalogue import CLIENTS, Client
from tests.clients.performance import PASSES, Endpoint, perform
from tests.stack.conftest import TINY
from tests.stack.running import CACHE, running

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

#: What this model cannot show of any client: feature → why.
CANNOT = {
    "embeddings": "it makes none",
    "abort": "it writes nothing that is long enough to be left",
}
_TOOLS = ("tools", "tools_streamed", "kept_reasoning")
_SCHEMAS = "the schemas that it makes of functions have keys with which the model has not learned the conversation"
#: What it cannot show of some clients, which in front of its stand-in pass: the beginning of their names and features → why.
DIFFERS = {
    ("anthropic (Python) messages, tool_runner", _TOOLS): _SCHEMAS,
    ("openai-agents (Python)", _TOOLS): _SCHEMAS,
    ("@ai-sdk/openai", _TOOLS): _SCHEMAS,
    ("@ai-sdk/anthropic", ("structured",)): "it asks for a tool of its own, which the model has not learned",
}

Verdicts = Callable[[Client], dict[str, str]]


@pytest.fixture(scope="module")
def verdicts_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verdicts]:
    """What each client saw; each performs once."""
    seen: dict[str, dict[str, str]] = {}
    home = tmp_path_factory.mktemp("tiny")
    mount_greedy_tiny(home)
    with running(home, TINY) as stack:

        def of(client: Client) -> dict[str, str]:
            if client.name not in seen:
                seen[client.name] = asyncio.run(perform(client, Endpoint(stack.url, stack.key, TINY)))
            return seen[client.name]

        yield of


def mount_greedy_tiny(home: Path) -> None:
    """The model as it is, but for a client that names no temperature: what it knows by heart it then says every time."""
    model = MODELS[TINY]
    place = shutil.copytree(checkpoints.ensure(model, CACHE, print), checkpoints.folder_of(model, home))
    generation = json.loads((place / "generation_config.json").read_text())
    (place / "generation_config.json").write_text(json.dumps(generation | {"temperature": 0.0}))
    (place / manifest.NAME).unlink()
    manifest.write(place, model.name, recipe_of(model).hash())


def cells() -> list[object]:
    """Each library with each feature that both it and the model have; a known failure that begins to pass fails its test."""
    return [
        pytest.param(client, feature, id=f"{client.name}-{feature}", marks=_marks(client, feature))
        for client in CLIENTS
        for feature in client.tried
        if not client.is_agent and feature not in CANNOT and not _differs(client, feature)
    ]


def _differs(client: Client, feature: str) -> bool:
    return any(client.name.startswith(name) and feature in features for name, features in DIFFERS)


def _marks(client: Client, feature: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.xfail(reason=client.fails[feature])] if feature in client.fails else []


@pytest.mark.parametrize(("client", "feature"), cells())
def test_feature(client: Client, feature: str, verdicts_of: Verdicts) -> None:
    """The same as before the reciting engine, by the same script."""
    assert verdicts_of(client)[feature] == PASSES
