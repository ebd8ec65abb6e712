"""What the tests of the wire share: a small model, in all the forms that servers take."""

import pytest

from benchmarks.wire.network import Loop, Network, write_network
from tests.benchmarks.peer_app import HIDDEN


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return write_network(tmp_path_factory.mktemp("model"), HIDDEN)


@pytest.fixture(scope="session")
def loop(network: Network) -> Loop:
    return Loop(network)
