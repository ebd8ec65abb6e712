"""Tests of the road export modules that were never trained, whose y hardly moves: beside it the
rounding of int8 is large. They are held to an absolute least; tests of the gate itself are not."""

from collections.abc import Iterator

import pytest

from export import tolerances

INT8_LEAST = 0.03  # of y's unit; what an untrained cell with 8-bit weights stays well within
REAL_GATE = "REAL_GATE"  # a module of tests that sets it gets the gate as it is


@pytest.fixture(scope="module", autouse=True)
def _untrained_modules_may_be_quantized(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if not hasattr(request.module, REAL_GATE):
            patch.setattr(tolerances, "INT8_LEAST", INT8_LEAST)
        yield
