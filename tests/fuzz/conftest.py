"""One service for all fuzzing, and one session that everything is aimed at."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings

from service.model import Model
from tests.chaos.oracle import Chunk, Ledger
from tests.e2e.conftest import SINE, Server, serving
from tests.service.build_artifact import build_artifact

VICTIM = "victim"

# Everywhere the same examples: what CI finds, anybody finds. No shrinking against a live server:
# a second try of one request is another request.
FUZZ = settings(
    max_examples=120,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Target:
    """A running service, and what its one session was told."""

    server: Server
    client: httpx.Client
    model: Model
    ledger: Ledger = field(default_factory=Ledger)

    def stand(self, session_id: str = VICTIM) -> int:
        """Where a session stands; 0 where it never began."""
        reply = self.client.get(f"/sessions/{session_id}")
        return int(reply.json()["step"]) if reply.status_code == 200 else 0

    def note(self, status: int, request: Any, reply: Any) -> None:
        """The victim got a reply: 200 and y for these rows, or a refusal."""
        if status == 200:
            x = tuple(tuple(map(float, row)) for row in request["x"])
            chunk = Chunk(VICTIM, reply["step"] - len(x), x)
            self.ledger.acknowledge(chunk, tuple(tuple(row) for row in reply["y"]))

    def is_well(self) -> None:
        """It serves on; every refusal left the victim as it was; and nothing of ours failed."""
        assert self.client.get("/readyz").status_code == 200
        assert self.ledger.judge(self.model, {VICTIM: self.stand()}) == []
        assert "Traceback" not in self.server.text()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    root = tmp_path_factory.mktemp("fuzz")
    path: Path = build_artifact(root / "artifacts", SINE)
    # A small limit, so that bodies beyond it are cheap.
    with (
        serving(
            root,
            CAROUSEL_ARTIFACTS=str(root / "artifacts"),
            CAROUSEL_MAX_BODY_BYTES="20000",
            CAROUSEL_STORE="memory",
        ) as server,
        server.client() as client,
    ):
        target = Target(server, client, Model.load(path))
        yield target
        target.is_well()
