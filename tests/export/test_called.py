"""How a module is called is found out by calling it."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from export.calling.called import find_call
from export.errors import CallError
from models.cells import LSTMCell
from models.networks import CellForecaster, LSTMForecaster

SEQUENCE = "X, (h, c)=None -> Y, (h, c)"
X = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("module", "call", "shapes"),
    [
        (CellForecaster(3, 8, 1), SEQUENCE, {"h": (8,), "c": (8,)}),
        (LSTMForecaster(3, 8, 2, 2), SEQUENCE, {"h": (2, 8), "c": (2, 8)}),
        (LSTMCell(3, 8), "x, (h, c) -> h, c", {"h": (8,), "c": (8,)}),
        (nn.LSTM(3, 8), SEQUENCE, {"h": (1, 8), "c": (1, 8)}),
        (nn.LSTM(3, 8, batch_first=True), SEQUENCE, {"h": (1, 8), "c": (1, 8)}),
        (nn.GRU(3, 8, 2), "X, h=None -> Y, h", {"h": (2, 8)}),
        (nn.GRUCell(3, 8), "x, h=None -> h", {"h": (8,)}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)  # fmt: skip
def test_common_calls_are_found(
    module: nn.Module, call: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    """The notation and the states' shapes, without the batch, in the module's own order."""
    found = find_call(module.eval(), X)
    assert found.call.text == call
    assert {s.name: s.shape for s in found.states} == shapes


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_inner_interface_is_batch_first(batch_first: bool) -> None:
    """Whatever the module's axes are, run() gives what the module gives, batch and time first."""
    torch.manual_seed(0)
    module = nn.LSTM(3, 8, 2, batch_first=batch_first).eval()
    reference = find_call(module, X)
    with torch.no_grad():
        y, state = reference.run(X, reference.initial(2))
        wanted, (h, c) = module(X if batch_first else X.transpose(0, 1))
    assert torch.equal(y, wanted if batch_first else wanted.transpose(0, 1))
    assert torch.equal(state["h"], h.transpose(0, 1))
    assert torch.equal(state["c"], c.transpose(0, 1))


def test_no_way_lists_what_was_tried() -> None:
    """A module of other width is refused with the reason of every try."""
    with pytest.raises(CallError, match=r"no way .* x of 3 features a step; tried:\n(?s:.*)--call"):
        find_call(LSTMCell(5, 8).eval(), X)


class Refusing(nn.Module):
    """Takes nothing; counts by their shapes what it was offered."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 8

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        if isinstance(h, Tensor):
            OFFERED[tuple(x.shape), tuple(h.shape)] += 1
        raise ValueError("not so")


OFFERED: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()


def test_what_the_module_refused_is_not_offered_again() -> None:
    """Calls that differ in what comes back, as y, h and h, offer the same."""
    OFFERED.clear()
    with pytest.raises(CallError, match="not so"):
        find_call(Refusing().eval(), X)
    assert OFFERED[(2, 3), (2, 8)] == OFFERED[(2, 5, 3), (2, 8)] == 1


class Both(nn.Module):
    """Takes its states packed in a tuple or apart."""

    def __init__(self, apart: float) -> None:
        super().__init__()
        self.cell = LSTMCell(3, 8)
        self.apart = apart

    def forward(self, x: Tensor, *state: Tensor | tuple[Tensor, Tensor]) -> object:
        return self.cell(x, state[0]) if len(state) == 1 else self.cell(self.apart * x, state)


def test_several_ways_are_an_error_that_lists_them() -> None:
    """A module that computes another thing when its states come apart must be told which."""
    with pytest.raises(CallError, match=r"several ways(?s:.*)x, \(h, c\) -> h, c(?s:.*)x, h, c"):
        find_call(Both(2.0).eval(), X)
    assert find_call(Both(2.0).eval(), X, "x, h, c -> h, c").states[0].shape == (8,)


def test_ways_that_compute_the_same_are_one() -> None:
    """The more common notation is taken."""
    assert find_call(Both(1.0).eval(), X).call.text == "x, (h, c) -> h, c"


def test_a_told_axis_of_time_is_kept_to() -> None:
    """A module that takes time first is not called batch first because it would also run."""
    told = "X, h=None -> Y, h; X is (time, batch, ...)"
    assert find_call(nn.GRU(3, 8).eval(), X, told).describe() == told
    with pytest.raises(CallError, match="no way was found"):
        find_call(nn.GRU(3, 8).eval(), X, told.replace("time, batch", "batch, time"))
