"""Tests of the road export modules that were never trained, whose y hardly moves: beside it the
rounding of int8 is large. They are held as if it moved by 0.1; the gate's own tests are not."""

from collections.abc import Iterator

import pytest

from export import tolerances

LEAST_SPREAD = 0.1  # of y's unit; a module of tests may name its own
REAL_GATE = "REAL_GATE"  # a module of tests that sets it gets the gate as it is


@pytest.fixture(scope="module", autouse=True)
def _untrained_modules_may_be_quantized(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if not hasattr(request.module, REAL_GATE):
            least = getattr(request.module, "LEAST_SPREAD", LEAST_SPREAD)
            patch.setattr(tolerances, "LEAST_SPREAD", least)
        yield
