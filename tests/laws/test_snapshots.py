"""A snapshot restores under every other variant of its model's version."""

from datetime import UTC, datetime

import numpy as np
import pytest

from service.artifact import Artifact
from service.catalog import Catalog
from service.copying import restore, take_snapshot
from service.model import Model
from service.session import SessionKey
from service.snapshot import Keyring
from tests.service.test_engine import request, rows, run, running, whole

RING = Keyring((b"k" * 32,))
NOW = datetime(2026, 11, 24, tzinfo=UTC)
A = SessionKey("", "a")


@pytest.mark.parametrize("variant", ["onnx-int8-rowwise", "onnx-int8", "torchscript-fp32"])
def test_a_snapshot_restores_under_another_variant_and_back(
    demo_artifacts: dict[str, Artifact], variant: str
) -> None:
    """From float and back to it: the state is the same, and each variant goes on from it."""
    path = demo_artifacts["sine-cell"].path
    fp32, other_kind = Model.load(path), Model.load(path, variant)
    x = rows(30)

    async def scenario() -> None:
        async with running(Catalog([fp32])) as one, running(Catalog([other_kind])) as other:
            await one.predict(request("a", x[:10]))
            file = await take_snapshot(one, A, RING, NOW)
            await restore(other, A, file, RING, replace=False)
            assert await take_snapshot(other, A, RING, NOW) == file
            state = (await one.look_up(A)).state
            answer = await other.predict(request("a", x[10:20], 10))
            (y,), _, _ = other_kind.run([other_kind.encode(x[10:20])], [state])
            assert np.array_equal(answer.y, other_kind.decode(y))
            back = await take_snapshot(other, A, RING, NOW)
            await restore(one, A, back, RING, replace=True)
            last = await one.predict(request("a", x[20:], 20))
            assert np.abs(last.y - whole(fp32, x)[20:]).max() < 0.05  # int8 drifts less

    run(scenario())
