"""How `make test` shares the tests out among pytest's workers, each a process: two of them have stacks, the rest do the rest."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

#: Folders of which one worker runs everything, in the order in which they begin: the longest first. Each engine start costs
#: most of a minute on two cores, importing vLLM costs seconds: the files of a folder share them.
WHOLE = ("tests/stack/gpt_oss", "tests/stack", "tests/engine")


#: A file that needs a folder's models runs beside it: elsewhere a worker would only wait until they are trained.
BESIDE = {"tests/engine/checkpoints/test_margins.py": "tests/stack/gpt_oss"}


def unit(nodeid: str) -> str:
    """What a worker takes as one: such a folder, else a file, whose tests share fixtures."""
    path = nodeid.partition("::")[0]
    if path in BESIDE:
        return BESIDE[path]
    return next((folder for folder in WHOLE if path.startswith(f"{folder}/")), path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Units in the order in which workers take them; what is not named above stays as it was collected."""
    places = {folder: place for place, folder in enumerate(WHOLE)}
    items.sort(key=lambda item: places.get(unit(item.nodeid), len(WHOLE)))


class ByUnit(LoadScopeScheduling):  # type: ignore[misc]  # xdist comes without types
    """xdist's own scheduling of whole scopes, with the units above for scopes."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


@pytest.hookimpl(optionalhook=True)  # with `-p no:xdist` there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    config.option.loadscopereorder = False  # it would put the scopes with most tests first
    return ByUnit(config, log)
