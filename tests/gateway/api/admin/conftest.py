from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.api.admin.office_hours import Administered, administered


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Administered]:
    """A gateway that is administered."""
    async with administered(tmp_path) as running:
        yield running
