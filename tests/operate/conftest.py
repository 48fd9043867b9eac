"""A fixture API server for each test, a kubeconfig for it, and the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from serving.cli import app
from serving.errors import Refusal
from tests.operate.api_server import ApiServer, kubeconfig, serving_api

Command = Callable[..., Result]


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with serving_api(ApiServer()) as it:
        yield it
    assert it.broken == []


@pytest.fixture
def config(api: ApiServer, tmp_path: Path) -> Path:
    return kubeconfig(tmp_path, api.url)


@pytest.fixture
def serving(config: Path) -> Command:
    """`serving COMMAND … --kubeconfig FILE`; anything but an exit or a Refusal fails the test."""

    def run(command: str, *arguments: str) -> Result:
        result = CliRunner().invoke(app, [command, "--kubeconfig", str(config), *arguments])
        if result.exception and not isinstance(result.exception, (SystemExit, Refusal)):
            raise result.exception
        return result

    return run
