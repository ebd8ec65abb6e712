"""Where contestants run: a folder, the model's files, and their environments."""

import asyncio
import itertools
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.peers.contestants import APPS, Contestant
from benchmarks.peers.venvs import make_venv
from benchmarks.wire import carousel, servers
from benchmarks.wire.client import wait_until_it_answers
from benchmarks.wire.network import WIDTH, Network
from benchmarks.wire.servers import Server


class Stage:
    """Starts contestants, each in a folder of its own under one that is deleted at the end."""

    def __init__(self, cache: Path, network: Network) -> None:
        self._cache = cache.absolute()  # servers run in folders of their own
        self._network = network
        self._folder = Path(tempfile.mkdtemp(prefix="peers-"))
        self._numbers = itertools.count()

    def close(self) -> None:
        shutil.rmtree(self._folder)

    def bin_of(self, contestant: Contestant) -> Path:
        """The commands of its environment; VenvError if it cannot be had here."""
        if contestant.app is None:
            return Path(sys.executable).parent
        return make_venv(self._cache, contestant.app)

    def folder_for(self, contestant: Contestant) -> Path:
        """A new folder, for its log and what it keeps."""
        folder = self._folder / f"{next(self._numbers)}"
        folder.mkdir()
        return folder

    def start(
        self, contestant: Contestant, folder: Path | None = None, port: int | None = None
    ) -> Server:
        """Start it and wait until it answers; in the `folder` and on the `port` of another time.

        Raises:
            ServerError: it does not start.
            VenvError: it cannot be installed.
        """
        folder = folder or self.folder_for(contestant)
        if contestant.app is None:
            artifacts = self._network.artifacts
            return carousel.start(folder, artifacts, WIDTH, contestant.settings, port)
        port = port or servers.free_port()
        app = APPS / contestant.app
        words = {
            "bin": str(self.bin_of(contestant)),
            "app": str(app),
            "port": str(port),
            "next_port": str(servers.free_port()),
            "last_port": str(servers.free_port()),
        }
        command = [part.format(**words) for part in contestant.command]
        settings = self._settings(folder) | {
            name: value.format(**words) for name, value in contestant.settings.items()
        }
        server = servers.start(command, app, settings, folder / "log", port)
        try:
            unary = contestant.unary
            asyncio.run(wait_until_it_answers(server, unary.link, unary.path, WIDTH))
        except BaseException:
            server.kill()
            raise
        return server

    def _settings(self, folder: Path) -> dict[str, str]:
        network = self._network
        return {
            "PEERS_MODEL": str(network.stock),
            "PEERS_WEIGHTS": str(network.weights),
            "PEERS_HIDDEN": str(network.hidden),
            "BENTOML_HOME": str(folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "RAY_TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
