"""A loop whose first step is made of other operations carries a flag that says which counts."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export.finding import find_reference
from export.source import Source
from service.pipeline import Pipeline
from tests.export.short import export

X = torch.randn(3, 30, 3, generator=torch.Generator().manual_seed(0))
CUTS = (0, 1, 2, 7, 9, 18, 30)
H = 5


class NoneFirst(nn.Module):
    """There is no h to multiply at the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(3, H), nn.Linear(H, H)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor | None = None
        out = []
        for t in range(x.size(1)):
            z = self.w(x[:, t])
            if h is not None:
                z = z + self.u(h)
            h = torch.tanh(z)
            out.append(h)
        return torch.stack(out, 1)


class FromTheInput(nn.Module):
    """Its state begins with what the first input says."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(3, H)
        self.cell = nn.Linear(3 + H, H)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x[:, 0])
        out = []
        for t in range(x.size(1)):
            h = torch.tanh(self.cell(torch.cat([x[:, t], h], 1)))
            out.append(h)
        return torch.stack(out, 1)


class FirstWrittenOut(nn.Module):
    """An LSTM whose first step stands before the loop, without a forget gate."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(3, 4 * H), nn.Linear(H, 4 * H)
        self.fc = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        i, _, g, o = self.w(x[:, 0]).chunk(4, 1)
        c = i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        for t in range(1, x.size(1)):
            i, f, g, o = (self.w(x[:, t]) + self.u(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        y: Tensor = self.fc(h)
        return y


class TwoAverages(nn.Module):
    """Two running averages that both begin as the first input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        fast = slow = x[:, 0]
        out = []
        for t in range(x.size(1)):
            if t > 0:
                fast = 0.5 * x[:, t] + 0.5 * fast
                slow = 0.1 * x[:, t] + 0.9 * slow
            out.append(self.fc(torch.cat([fast, slow], 1)))
        return torch.stack(out, 1)


class MeanOfAList(nn.Module):
    """`sum` begins with the number 0, and the list's length divides."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(3 + H, H)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), H)
        outs = []
        for t in range(x.size(1)):
            h = torch.tanh(self.cell(torch.cat([x[:, t], h], 1)))
            outs.append(h)
        return sum(outs) / len(outs)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("kind", "states"),
    [
        (NoneFirst, {"h": H, "begun": 1}),
        (FromTheInput, {"h": H, "begun": 1}),
        (FirstWrittenOut, {"h": H, "c": H, "begun": 1}),
        (TwoAverages, {"h1": 3, "h2": 3, "begun": 1}),
        (MeanOfAList, {"h1": H, "h2": H, "count": 1}),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_first_step_of_its_own_is_taken_once(
    kind: type[nn.Module], states: dict[str, int]
) -> None:
    """The chunks give what the module gives by itself, whichever step a chunk begins with."""
    torch.manual_seed(1)
    module = kind().eval()
    reference = find_reference(module, X)
    assert {s.name: s.shape for s in reference.states} == {n: (k,) for n, k in states.items()}
    state, ys = reference.initial(len(X)), []
    with torch.no_grad():
        for start, stop in itertools.pairwise(CUTS):
            y, state = reference.run(X[:, start:stop], state)
            ys.append(y)
        whole = module(X)
        if whole.ndim == 2:
            whole = torch.stack([module(X[:, : t + 1]) for t in range(30)], 1)
    torch.testing.assert_close(torch.cat(ys, 1), whole, atol=1e-5, rtol=1e-5)


def test_the_flag_is_part_of_the_artifact(tmp_path: Path) -> None:
    """Sessions that stand at different steps share a batch; each takes the step that is its own."""
    torch.manual_seed(1)
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(3)).numpy()
    module = NoneFirst().eval().requires_grad_(False)
    exported = export(Source("x:y", module, "0" * 64, x, Pipeline()), "small", tmp_path)
    assert float(exported.artifact.initial["begun"].max()) == 0
    assert {"onnx-fp32", "torchscript-fp32"} <= exported.artifact.manifest.variants.keys()
