from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As in a pod: threads that wait for each other by spinning are slow on busy processors."""
    torch.set_num_threads(1)
