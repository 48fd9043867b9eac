"""A kubeconfig that cannot work is refused in a sentence that says what to mend, and never quotes what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.errors import Refusal
from serving.operate.cluster import connect
from serving.operate.kubeconfig import choose
from tests.operate.conftest import Command

TOKEN = "a-token-nobody-should-read"


def content(**changed: Any) -> dict[str, Any]:
    """Two contexts of one cluster behind TLS; None takes a key away."""
    whole: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "work",
        "contexts": [
            {"name": "work", "context": {"cluster": "dgx", "user": "me", "namespace": "llm"}},
            {"name": "home", "context": {"cluster": "dgx", "user": "me"}},
        ],
        "clusters": [{"name": "dgx", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "me", "user": {"token": TOKEN}}],
    }
    return {key: value for key, value in (whole | changed).items() if value is not None}


def user(**fields: Any) -> list[dict[str, Any]]:
    return [{"name": "me", "user": {"token": TOKEN} | {key.replace("_", "-"): value for key, value in fields.items()}}]


def cluster(**fields: Any) -> list[dict[str, Any]]:
    described = {"server": "https://127.0.0.1:1"} | {key.replace("_", "-"): value for key, value in fields.items()}
    return [{"name": "dgx", "cluster": described}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("contexts: [", "not valid YAML"),
        ("\0\1", "not valid YAML"),
        ("- a list", "mapping"),
        ("", "no current context"),
        (content(contexts=None), "no context 'work'"),
        (content(contexts="work"), "$.contexts"),
        (content(contexts=[{"context": {}}]), "`name`"),
        (content(contexts=[{"name": "work", "context": "dgx"}]), "$.contexts[0].context"),
        (content(contexts=[{"name": "work"}]), "no server"),
        (content(clusters=None), "no server"),
        (content(clusters=cluster(server=6443)), "server"),
        (content(clusters=cluster(proxy_url="gopher://proxy")), "cannot be used"),
        (content(users=[{"name": "me", "user": TOKEN}]), "$.users[0].user"),
        (content(users=user(client_certificate_data="a")), "cannot be used"),
        (content(**{"current-context": None}), "--context"),
        (content(**{"current-context": "gone"}), "no context 'gone'"),
    ],
)
def test_a_broken_kubeconfig_is_refused(config: Path, serving: Command, text: str | dict[str, Any], words: str) -> None:
    """Broken YAML, another shape, nothing of the name: one sentence with the place, and no credential in it."""
    config.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    refused = serving("preflight").exception
    assert isinstance(refused, Refusal) and words in str(refused)
    assert "\n" not in str(refused) and TOKEN not in str(refused)


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"users": user(client_certificate="none.pem")}, "client-certificate"),
        ({"users": user(client_key="none.pem")}, "client-key"),
        ({"users": user(token="", tokenFile="none.pem")}, "tokenFile"),
        ({"clusters": cluster(certificate_authority="none.pem")}, "certificate-authority"),
    ],
)
def test_a_file_that_is_missing_is_named(config: Path, serving: Command, changed: dict[str, Any], key: str) -> None:
    """Which key names which file is what its owner needs to know."""
    config.write_text(yaml.safe_dump(content(**changed)))
    refused = serving("status").exception
    assert isinstance(refused, Refusal) and f"{key} that is not there: none.pem" in str(refused)


def test_files_lie_beside_their_kubeconfig(tmp_path: Path) -> None:
    """A relative name is looked for there, whatever folder the command runs in."""
    (tmp_path / "ca.pem").write_text("")
    (tmp_path / "config").write_text(yaml.safe_dump(content(clusters=cluster(certificate_authority="ca.pem"))))
    assert connect(tmp_path / "config").namespace == "llm"


def test_a_context_that_is_named_needs_no_current_one(tmp_path: Path) -> None:
    """`--context` says all there is to say; its namespace is `default` where it has none of its own."""
    (tmp_path / "config").write_text(yaml.safe_dump(content(**{"current-context": None})))
    assert connect(tmp_path / "config", "home").namespace == "default"
    assert connect(tmp_path / "config", "work").namespace == "llm"


def test_of_several_files_the_first_to_say_something_wins(tmp_path: Path) -> None:
    """As kubectl reads KUBECONFIG: a file that is not there is left out, and a context may lie in a later one."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text(yaml.safe_dump({"current-context": "home"}))
    second.write_text(yaml.safe_dump(content()))
    chosen = choose(None, None, {"KUBECONFIG": f"{tmp_path / 'none'}:{first}:{second}"})
    assert (chosen.context, chosen.namespace) == ("home", "default")
    with pytest.raises(Refusal, match="--kubeconfig"):
        choose(None, None, {"KUBECONFIG": str(tmp_path / "none")})
