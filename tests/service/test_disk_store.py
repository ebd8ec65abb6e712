"""The embedded store: the contract, and what is its own."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from service.store import Store
from service.store.disk.machine import Machine
from service.store.disk.store import DiskStore, Durability
from tests.service.test_store import IDLE_TIMEOUT_S, MAX_SESSIONS, Clock, StoreContract


@pytest.fixture(params=get_args(Durability))
def durability(request: pytest.FixtureRequest) -> Durability:
    chosen: Durability = request.param
    return chosen


class TestDiskStore(StoreContract):
    """Sessions in mapped files."""

    @pytest.fixture
    def make(self, clock: Clock, tmp_path: Path, durability: Durability) -> Callable[[], Store]:
        machine = Machine(1, clock, lambda: 1e9)
        return lambda: DiskStore(tmp_path, MAX_SESSIONS, IDLE_TIMEOUT_S, durability, machine)
