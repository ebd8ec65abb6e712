"""Modules of which one layer cannot be quantized, each in a way of its own."""

import torch
from torch import Tensor, nn

HIDDEN = 24
CALL = "x, (s, h, c) -> y, (s, h, c)"


class NearEdge(nn.Module):
    """A plain RNN whose modes all but last forever, beside an ordinary LSTM.

    The slow cell's matrix turns each pair of directions by an angle of its own and shrinks by
    0.999: rounding its weights lifts some above 1, the rounding of its small h is carried on for
    thousand steps, and y feels every direction, so that no small part in float saves it.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.slow = nn.RNNCell(1, HIDDEN)
        self.quick = nn.LSTMCell(1, HIDDEN)
        self.head = nn.Linear(2 * HIDDEN, 1)
        modes, _ = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN))
        with torch.no_grad():
            turns = torch.linspace(0.05, 3.0, HIDDEN // 2)
            swings = torch.block_diag(  # type: ignore[no-untyped-call]
                *(torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]]) for a in turns)
            )
            self.slow.weight_hh.copy_(modes @ (0.999 * swings) @ modes.T)
            self.slow.weight_ih.mul_(0.05)
            self.slow.bias_ih.zero_()
            self.slow.bias_hh.zero_()
            self.head.weight[:, :HIDDEN].mul_(8)  # its h is small, and counts

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        slow, h, c = state
        slow = self.slow(x, slow)
        h, c = self.quick(x, (h, c))
        return self.head(torch.cat([slow, h], dim=1)), (slow, h, c)


class SteepHead(nn.Module):
    """An LSTM whose h hardly moves, read by a head of 16 outputs that makes much of it.

    h takes some ten of the 254 steps of its int8: too few for the head, enough for the recurrence,
    which takes little of h. The head's weights have steps of their own, and are not the trouble.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(1, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 16)
        with torch.no_grad():
            scales = {"weight_ih_l0": 0.3, "weight_hh_l0": 0.1, "bias_ih_l0": 0, "bias_hh_l0": 0}
            for name, scale in scales.items():
                self.lstm.get_parameter(name).mul_(scale)
            self.head.weight.mul_(10)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out, state = self.lstm(x, state)
        return self.head(out), state
