"""An activator's ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_operator.activator.doors import Doors
from mms_operator.activator.table import Table
from tests.unit.activator.backends import HOST, free_pair
from tests.unit.activator.test_table import service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    found = Doors(Table(), HOST)
    found.table.put_service(service("x", free_pair()))
    await found.update()
    yield found
    await found.close()
