"""Networks that take earlier steps by a shift, as different people write them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

INPUT, H = 3, 5


class QRNN(nn.Module):
    """Quasi-recurrent (Bradbury et al. 2016): a convolution of width 2, then fo-pooling."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Conv1d(INPUT, 3 * H, width)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x.permute(0, 2, 1), (self.width - 1, 0))
        z, f, o = self.conv(padded).permute(0, 2, 1).chunk(3, dim=-1)
        z, f, o = z.tanh(), f.sigmoid(), o.sigmoid()
        c = torch.zeros_like(z[:, 0])
        out = []
        for t in range(x.size(1)):
            c = f[:, t] * c + (1 - f[:, t]) * z[:, t]
            out.append(o[:, t] * c)
        return torch.stack(out, 1)


class Chomp1d(nn.Module):
    """Cuts off what a padding on both sides adds at the end."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    """Two dilated convolutions and a residual (Bai et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        pad = (kernel - 1) * dilation
        self.net = nn.Sequential(
            weight_norm(nn.Conv1d(inputs, outputs, kernel, padding=pad, dilation=dilation)),
            Chomp1d(pad),
            nn.ReLU(),
            nn.Dropout(0.2),
            weight_norm(nn.Conv1d(outputs, outputs, kernel, padding=pad, dilation=dilation)),
            Chomp1d(pad),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        self.downsample = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.net(x) + residual)


class TCN(nn.Module):
    """Blocks of dilations 1 to 8, of kernel 3; no recurrent layer at all."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [INPUT, 4, 4, 4]
        self.tcn = nn.Sequential(*[TemporalBlock(n, 4, 3, 2**i) for i, n in enumerate(sizes)])
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.tcn(x.transpose(1, 2))[:, :, -1])
        return y


class TCNThenLSTM(nn.Module):
    """Blocks of dilations 1 and 2 before an nn.LSTM, the last output alone."""

    def __init__(self) -> None:
        super().__init__()
        self.tcn = nn.Sequential(TemporalBlock(INPUT, 4, 2, 1), TemporalBlock(4, 4, 2, 2))
        self.lstm = nn.LSTM(4, H, batch_first=True)
        self.head = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.lstm(self.tcn(x.transpose(1, 2)).transpose(1, 2))[0]
        y: Tensor = self.head(out[:, -1])
        return y


class ConvolvedAhead(nn.Module):
    """Time first, a causal convolution between two layers of recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GRU(INPUT, 4), nn.GRU(4, H)
        self.conv = nn.Conv1d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = F.pad(self.first(x)[0].permute(1, 2, 0), (2, 0))
        y: Tensor = self.second(self.conv(out).permute(2, 0, 1))[0]
        return y


class Mixed(nn.Module):
    """Each step mixed with the one before, then a GRU; `before` says how that is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.rand(INPUT))
        self.gru = nn.GRU(INPUT, H, batch_first=True)

    def before(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gru(x * self.mu + self.before(x) * (1 - self.mu))[0]
        return y


class ByCat(Mixed):
    def before(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


class ByZeroPad(Mixed):
    """As RWKV's token shift."""

    def __init__(self) -> None:
        super().__init__()
        self.time_shift = nn.ZeroPad2d((0, 0, 1, -1))

    def before(self, x: Tensor) -> Tensor:
        y: Tensor = self.time_shift(x)
        return y


class ByRoll(Mixed):
    def before(self, x: Tensor) -> Tensor:
        rolled = torch.roll(x, 1, dims=1).clone()
        rolled[:, 0] = 0
        return rolled


class ByIndex(Mixed):
    def before(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, 2:] = x[:, :-2]
        return y


class FromAToken(Mixed):
    """What stands before the first step is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.bos = nn.Parameter(torch.randn(INPUT))

    def before(self, x: Tensor) -> Tensor:
        return torch.cat([self.bos.expand(x.size(0), 1, -1), x[:, :-1]], dim=1)


class Difference(Mixed):
    """The first row is zero, which is no difference to any constant."""

    def before(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x[:, :1]), x.diff(dim=1)], dim=1)


class Repeated(Mixed):
    """The first step stands for those before it."""

    def before(self, x: Tensor) -> Tensor:
        padded = F.pad(x.transpose(1, 2), (3, 0), mode="replicate")
        return F.avg_pool1d(padded, 4, stride=1).transpose(1, 2)


class MovingAverage(Mixed):
    def before(self, x: Tensor) -> Tensor:
        return F.pad(x.transpose(1, 2), (3, 0)).unfold(2, 4, 1).mean(-1).transpose(1, 2)


class TwoShifts(Mixed):
    """A shift of a shift, neither of which the first step shows."""

    def before(self, x: Tensor) -> Tensor:
        once = F.pad(x, (0, 0, 1, 0))[:, :-1]
        return torch.cat([torch.zeros_like(x[:, :1]), torch.tanh(once)[:, :-1]], dim=1)


@dataclass(frozen=True)
class Spelling:
    """A network, and the states that it must come out with, flat."""

    module: type[nn.Module]
    states: Mapping[str, int]
    time_first: bool = False


GRU = {"h": H}
TCN_PAST = {
    f"past{i or ''}": n
    for i, n in zip((0, 2, 3, 4, 5, 6, 7, 8), (6, 8, 16, 16, 32, 32, 64, 64), strict=True)
}
SPELLINGS = (
    Spelling(QRNN, {"h": H, "past": INPUT}),
    Spelling(TCN, TCN_PAST),
    Spelling(TCNThenLSTM, {"h": H, "c": H, "past": 3, "past2": 4, "past3": 8, "past4": 8}),
    Spelling(ConvolvedAhead, {"h1": 4, "h2": H, "past": 8}, time_first=True),
    Spelling(ByCat, GRU | {"past": INPUT}),
    Spelling(ByZeroPad, GRU | {"past": INPUT}),
    Spelling(ByRoll, GRU | {"past": INPUT}),
    Spelling(ByIndex, GRU | {"past": 2 * INPUT}),
    Spelling(FromAToken, GRU | {"past": INPUT}),
    Spelling(Difference, GRU | {"past": INPUT, "count": 1}),
    Spelling(Repeated, GRU | {"past": 3 * INPUT, "count": 1}),
    Spelling(MovingAverage, GRU | {"past": 3 * INPUT}),
    Spelling(TwoShifts, GRU | {"past": INPUT, "past2": INPUT}),
)
