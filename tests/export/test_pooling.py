"""Poolings over time go on as running values, and what cannot is refused by name."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.errors import CausalityError
from export.finding import find_reference
from models.predictors import AttentionLSTM

X = torch.randn(3, 30, 3, generator=torch.Generator().manual_seed(0))
CUTS = (0, 1, 2, 7, 9, 18, 30)
H = 5


class Pooled(nn.Module):
    """A GRU, a pooling of its outputs, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, H, batch_first=True)
        self.hidden = nn.Linear(H, 7)
        self.score = nn.Linear(7, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.gru(x)[0])

    def pool(self, out: Tensor) -> Tensor:
        raise NotImplementedError

    def scores(self, out: Tensor) -> Tensor:
        """(B, T, 2), large enough that the greatest changes often."""
        return 20 * self.score(torch.tanh(self.hidden(out)))  # type: ignore[no-any-return]


class Bmm(Pooled):
    def pool(self, out: Tensor) -> Tensor:
        weights = F.softmax(self.scores(out)[..., :1], dim=1)
        return torch.bmm(weights.transpose(1, 2), out).squeeze(1)


class Flat(Pooled):
    def pool(self, out: Tensor) -> Tensor:
        weights = F.softmax(self.scores(out)[..., 0], -1)
        return (out * weights[:, :, None]).sum(dim=1)


class Heads(Pooled):
    def pool(self, out: Tensor) -> Tensor:
        weights = self.scores(out).softmax(dim=1)
        return torch.einsum("bth,bti->bhi", weights, out).flatten(1)


class HeadsFirst(Pooled):
    def pool(self, out: Tensor) -> Tensor:
        weights = self.scores(out).transpose(1, 2).softmax(dim=-1)
        return torch.matmul(weights, out).reshape(len(out), -1)


class Two(Pooled):
    def pool(self, out: Tensor) -> Tensor:
        first = self.scores(out)[..., :1].softmax(1)
        second = self.scores(out)[..., 1:].softmax(1)
        return torch.cat([(first * out).sum(1), (second * out).sum(1)], 1)


class Mean(Pooled):
    def pool(self, out: Tensor) -> Tensor:
        return self.hidden(out).mean(dim=1)  # type: ignore[no-any-return]


class Greatest(Pooled):
    def pool(self, out: Tensor) -> Tensor:
        return torch.cat([out.max(dim=1)[0], out.amax(1)], 1)


class Adaptive(Pooled):
    def pool(self, out: Tensor) -> Tensor:
        rows = out.transpose(1, 2)
        both = F.adaptive_avg_pool1d(rows, 1), F.adaptive_max_pool1d(rows, 1)
        return torch.cat(both, 1).squeeze(-1)


class Running(Pooled):
    """An output for every step."""

    def pool(self, out: Tensor) -> Tensor:
        return self.hidden(out.cumsum(dim=1))  # type: ignore[no-any-return]


class Exponentials(Pooled):
    """Both sums written out, the greatest taken off."""

    def pool(self, out: Tensor) -> Tensor:
        scores = self.scores(out)[..., :1]
        e = torch.exp(scores - scores.max(dim=1, keepdim=True)[0])
        return (e * out).sum(1) / e.sum(1)


class Normalised(Pooled):
    """Weights divided by their sum, nothing taken off."""

    def pool(self, out: Tensor) -> Tensor:
        e = torch.exp(self.scores(out)[..., :1] / 20).squeeze(-1)
        weights = e / torch.sum(e, dim=1, keepdim=True)
        return torch.bmm(weights.unsqueeze(1), out).squeeze(1)


class LogSumExp(Pooled):
    def pool(self, out: Tensor) -> Tensor:
        scores = self.scores(out)[..., :1]
        weights = torch.exp(scores - torch.logsumexp(scores, dim=1, keepdim=True))
        return (weights * out).sum(1)


class LogSoftmax(Pooled):
    def pool(self, out: Tensor) -> Tensor:
        return (F.log_softmax(self.scores(out)[..., :1], dim=1).exp() * out).sum(1)


class Unnormalised(Pooled):
    """The sum of the exponentials and one: no softmax, two running sums."""

    def pool(self, out: Tensor) -> Tensor:
        e = torch.exp(self.scores(out)[..., :1] / 20)
        return (e * out).sum(1) / (1 + e.sum(1))


class SumOverLength(Pooled):
    def pool(self, out: Tensor) -> Tensor:
        return self.hidden(out.sum(dim=1) / out.shape[1])  # type: ignore[no-any-return]


class Lengths(Pooled):
    def pool(self, out: Tensor) -> Tensor:
        lengths = torch.full((out.size(0),), out.size(1))
        return out.sum(dim=1) / lengths.unsqueeze(1)


class Total(Pooled):
    """Summed in a loop: after the first step the sum is h itself, and it is a state of its own."""

    def pool(self, out: Tensor) -> Tensor:
        total = torch.zeros(out.size(0), H)
        for t in range(out.size(1)):
            total = total + out[:, t]
        return self.hidden(total)  # type: ignore[no-any-return]


class TotalOverLength(Pooled):
    """Summed in a loop."""

    def pool(self, out: Tensor) -> Tensor:
        total = torch.zeros(out.size(0), H)
        for t in range(out.size(1)):
            total = total + out[:, t]
        return (1 / out.size(1)) * total


CASES = [
    (Exponentials, {"h": H, "m": 1, "l": 1, "a": H}),
    (Normalised, {"h": H, "m": 1, "l": 1, "a": H}),
    (LogSumExp, {"h": H, "m": 1, "l": 1, "a": H}),
    (LogSoftmax, {"h": H, "m": 1, "l": 1, "a": H}),
    (Unnormalised, {"h": H, "sum": H, "sum2": 1}),
    (SumOverLength, {"h": H, "sum": H, "count": 1}),
    (Lengths, {"h": H, "sum": H, "count": 1}),
    (Total, {"h1": H, "h2": H}),
    (TotalOverLength, {"h1": H, "h2": H, "count": 1}),
    (Bmm, {"h": H, "m": 1, "l": 1, "a": H}),
    (Flat, {"h": H, "m": 1, "l": 1, "a": H}),
    (Heads, {"h": H, "m": 2, "l": 2, "a": 2 * H}),
    (HeadsFirst, {"h": H, "m": 2, "l": 2, "a": 2 * H}),
    (Two, {"h": H, "m": 1, "l": 1, "a": H, "m2": 1, "l2": 1, "a2": H}),
    (Mean, {"h": H, "sum": 7, "count": 1}),
    (Greatest, {"h": H, "max": H, "max2": H}),
    (Adaptive, {"h": H, "sum": H, "count": 1, "max": H}),
    (Running, {"h": H, "sum": H}),
]


def _check(module: nn.Module, states: dict[str, int], gives_all: bool) -> None:
    reference = find_reference(module, X)
    assert {s.name: s.shape for s in reference.states} == {n: (k,) for n, k in states.items()}
    state, ys = reference.initial(len(X)), []
    with torch.no_grad():
        for start, stop in itertools.pairwise(CUTS):
            y, state = reference.run(X[:, start:stop], state)
            ys.append(y)
        whole = (
            module(X) if gives_all else torch.stack([module(X[:, : t + 1]) for t in range(30)], 1)
        )
    torch.testing.assert_close(torch.cat(ys, 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "states"), CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_a_pooling_goes_on_as_running_values(kind: type[Pooled], states: dict[str, int]) -> None:
    """Every spelling gives, step by step, what it gives over all steps so far at once."""
    torch.manual_seed(1)
    _check(kind().eval(), states, gives_all=kind is Running)


def test_our_attention_lstm_is_causal() -> None:
    """Its softmax over time is three states beside h and c."""
    torch.manual_seed(1)
    _check(AttentionLSTM(3, H, 2).eval(), {"h": H, "c": H, "m": 1, "l": 1, "a": H}, False)


def test_a_running_softmax_does_not_overflow() -> None:
    """Scores of thousands, of either sign, as the first and later, leave everything finite."""

    class Scaled(Pooled):
        def pool(self, out: Tensor) -> Tensor:
            weights = (3e4 * out[..., :1]).softmax(1)
            return (weights * out).sum(1)

    torch.manual_seed(1)
    reference = find_reference(Scaled().eval(), X)
    with torch.no_grad():
        y, state = reference.run(X, reference.initial(3))
    assert y.isfinite().all()
    assert all(value.isfinite().all() for value in state.values())


class LastQuery(Pooled):
    """Scores of every step against the last output."""

    def pool(self, out: Tensor) -> Tensor:
        weights = torch.bmm(out, out[:, -1:].transpose(1, 2)).softmax(1)
        return (weights * out).sum(1)


class Weights(Pooled):
    """The weights themselves are given."""

    def pool(self, out: Tensor) -> Tensor:
        return self.scores(out)[..., 0].softmax(1)


class Scattered(Pooled):
    """The weights are squared before they are summed."""

    def pool(self, out: Tensor) -> Tensor:
        weights = self.scores(out)[..., :1].softmax(1)
        return (weights**2 * out).sum(1)


class EveryStep(Pooled):
    """What is pooled is joined to every step, earlier ones too."""

    def pool(self, out: Tensor) -> Tensor:
        weights = self.scores(out)[..., :1].softmax(1)
        return out + (weights * out).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (LastQuery, r"the matrix product at `gru` takes step 0 after step 3 has come"),
        (Weights, r"the softmax at `score` is over time, and not summed up"),
        (Scattered, r"the softmax at `score` .* no weighted sum"),
        (EveryStep, r"the softmax at `score` is over time, .* it looks ahead"),
    ],
)
def test_what_weighs_the_past_anew_is_refused_by_name(kind: type[Pooled], what: str) -> None:
    """The operation and the submodule are named, and the rolling window is offered."""
    torch.manual_seed(1)
    with pytest.raises(CausalityError, match=what):
        find_reference(kind().eval(), X)
