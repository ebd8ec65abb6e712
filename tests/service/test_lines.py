"""Lines that go as blocks say what /predict says, whatever else a model's replies hold."""

import json
from itertools import chain
from typing import Any

import httpx
import numpy as np
import pytest

from service.catalog import Catalog
from service.engine import Engine
from service.model import Model
from service.protocols import gathering
from tests.service.build_artifact import build_artifact
from tests.service.test_engine import run, running
from tests.service.test_gathering import by_session, over_stream
from tests.service.test_native import with_app
from tests.service.test_text import SPECS

FIELDS = {
    "writer": {"text"},
    "dreamer": {"text"},  # drawn: by session and step
    "one-hot": {"text"},
    "speaker": {"tokens"},
    "judge": {"labels", "probabilities"},
    "guard": {"alarm"},
}
EACH = 5  # sessions of each model


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root = tmp_path_factory.mktemp("readers")
    return Catalog([Model.load(build_artifact(root, SPECS[name])) for name in FIELDS])


def reads() -> list[list[dict[str, Any]]]:
    """All sessions in each, of all models in turn: a step, three, one as a retry, and two more."""
    rng = np.random.default_rng(4)
    stand = {(name, number): 0 for number in range(EACH) for name in FIELDS}
    last: dict[tuple[str, int], dict[str, Any]] = {}

    def line(name: str, number: int, steps: int) -> dict[str, Any]:
        spec, at = SPECS[name], stand[name, number]
        x = (
            rng.normal(size=(steps, spec.input_size))
            if spec.ids is None
            else rng.integers(0, spec.ids, steps)
        )
        stand[name, number] += steps
        body = {"session_id": f"{name}-{number}", "model": name, "x": x.tolist(), "step": at}
        last[name, number] = body
        return body

    opened, longer = ([line(*key, steps) for key in stand] for steps in (1, 3))
    retried = [dict(last[key]) for key in stand]
    twice = [line(*key, 1 + key[1] % 2) for _ in range(2) for key in stand]
    return [opened, longer, retried, twice]


def test_the_fields_beside_y_are_those_of_predict(
    catalog: Catalog, in_blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte: text that is drawn, tokens, labels, probabilities and alarms."""
    monkeypatch.setattr(gathering, "LEAST_ROWS", 1)
    asked = reads()
    alone: list[bytes] = []

    async def one_by_one(client: httpx.AsyncClient, engine: Engine) -> None:
        for body in chain.from_iterable(asked):
            reply = await client.post("/predict", json=body)
            assert reply.status_code == 200, reply.text
            assert set(reply.json()) >= {"y", *FIELDS[body["model"]]}
            alone.append(reply.content)

    async def together() -> list[bytes]:
        async with running(catalog) as engine:
            parts = [
                (b"".join(json.dumps(body).encode() + b"\n" for body in read), len(read))
                for read in asked
            ]
            return await over_stream(engine, parts)

    run(with_app(catalog, one_by_one))
    assert by_session(run(together())) == by_session(alone)
    assert sum(in_blocks) == sum(map(len, asked[1:])), "all but those that begin a session"
