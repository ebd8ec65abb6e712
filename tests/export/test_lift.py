"""States that a module hides are lifted out, without a change to it."""

import pytest
import torch
from torch import Tensor, nn

from export.calling.called import find_call
from export.calling.lift import Lifted
from export.errors import CallError

X = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    """nn.LSTM from zero, every step answered."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 8, 2, batch_first=True)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.lstm(x)[0])
        return y


class ExplicitZeros(Plain):
    """As tutorials write it: h0 and c0 made in forward, the last step answered."""

    def forward(self, x: Tensor) -> Tensor:
        h0 = torch.zeros(2, x.size(0), 8)
        c0 = torch.zeros(2, x.size(0), 8)
        out, _ = self.lstm(x, (h0, c0))
        y: Tensor = self.fc(out[:, -1])
        return y


class LoopedCell(nn.Module):
    """nn.LSTMCell looped over time, time first."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.size(1), 8)
        outputs = []
        for step in x:
            h, c = self.cell(step, (h, c))
            outputs.append(h)
        return torch.stack(outputs)


class TwoLayers(nn.Module):
    """An LSTM and a GRU of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.LSTM(3, 8, batch_first=True)
        self.b = nn.GRU(8, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x)[0])[0]
        return y


class EncoderDecoder(nn.Module):
    """The decoder starts from the encoder's state."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(3, 8, batch_first=True)
        self.decoder = nn.LSTM(3, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        y: Tensor = self.decoder(x, state)[0]
        return y


class Twice(nn.Module):
    """One layer, started from zero twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.lstm(x)[0], self.lstm(-x)[0]], dim=-1)


@pytest.mark.parametrize(
    ("module", "call", "shapes"),
    [
        (Plain(), "X -> Y", {"h": (2, 8), "c": (2, 8)}),
        (ExplicitZeros(), "X -> y", {"h": (2, 8), "c": (2, 8)}),
        (LoopedCell(), "X -> Y", {"h": (8,), "c": (8,)}),
        (TwoLayers(), "X -> Y", {"a_h": (1, 8), "a_c": (1, 8), "b_h": (1, 6)}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_chunks_with_the_lifted_state_equal_the_module_by_itself(
    module: nn.Module, call: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    """Cut anywhere, the answers are those of the module on the whole sequence."""
    reference = find_call(module.eval(), X)
    assert reference.call.text.startswith(call)
    assert {s.name: s.shape for s in reference.states} == shapes
    steps = [0, 6, 20, 39]
    with torch.no_grad():
        wanted = reference.whole(X, steps)
        first, state = reference.run(X[:, :7], reference.initial(2))
        second, _ = reference.run(X[:, 7:], state)
    got = torch.cat([first, second], dim=1)[:, steps]
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
    with torch.no_grad():
        outside = X.transpose(0, 1) if isinstance(module, LoopedCell) else X
        alone = module(outside)
    alone = alone.transpose(0, 1) if isinstance(module, LoopedCell) else alone
    torch.testing.assert_close(got[:, -1], alone[:, -1] if alone.ndim == 3 else alone)


def test_the_users_module_is_left_as_it_was() -> None:
    """No hook remains, and its own answers are the same bits."""
    module = Plain().eval()
    with torch.no_grad():
        before = module(X)
        lifted = Lifted(module, X)
        lifted(X, None, None)
        assert torch.equal(module(X), before)
    for layer in module.modules():
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks


def test_a_decoder_that_starts_from_the_encoder_is_not_lifted() -> None:
    """Its state is the encoder's business."""
    assert Lifted(EncoderDecoder().eval(), X).state_names == ("h", "c")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Twice(), "`lstm` starts from zero 2 times in one call"),
        (nn.Linear(3, 2), "no recurrent torch layer that starts from zero"),
    ],
)
def test_what_cannot_be_lifted_is_said(module: nn.Module, said: str) -> None:
    """The reason names the layer."""
    with pytest.raises(CallError, match=said):
        Lifted(module.eval(), X)
