"""The tests mirror the rooms: each module of the gateway has one test file of its own, at the same place."""

from __future__ import annotations

from pathlib import Path

import pytest

import serving.gateway

ROOMS = Path(serving.gateway.__file__).parent
TESTS = Path(__file__).parent
MODULES = [
    path.relative_to(ROOMS)
    for path in sorted(ROOMS.rglob("*.py"))
    if path.name != "__init__.py" and "migrations" not in path.parts
]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_has_a_test_file(module: Path) -> None:
    """A rule is found where its code is; migrations are tested together, in store/test_migrations.py."""
    assert (TESTS / module.with_name(f"test_{module.name}")).exists()


#: About several modules together.
ACROSS = {
    *(Path("test_attack.py"), Path("test_imports.py"), Path("test_tree.py"), Path("store/test_migrations.py")),
    *(Path("relay/test_failures.py"), Path("relay/test_silence.py")),
}


def test_a_test_file_has_its_module() -> None:
    """What is moved or renamed takes its tests along."""
    tests = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")} - ACROSS
    assert {path.with_name(path.name.removeprefix("test_")) for path in tests} == set(MODULES)
