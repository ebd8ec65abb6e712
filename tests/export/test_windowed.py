"""The last N inputs as state: the user's module on a rolling window."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from export.__main__ import main
from export.cases import Cases
from export.errors import CallError, CausalityError, SourceError
from export.finding import find_reference
from export.onnx_in.source import OnnxModel
from export.parity import Gate
from export.source import Source
from export.streaming.windowed import SCORES, ScoreKind, Windowed, find_windowed
from models.autoencoder import AnomalyDetector
from models.classifier import BidirectionalClassifier
from models.predictors import Seq2Seq, TransformerForecaster
from service.manifest import Port, Ports, StatePort
from service.pipeline import Alarm, Pipeline
from tests.export.short import export

N = 6
X = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(80).reshape(2, 40) % 9


class BothWays(nn.Module):
    """A bidirectional layer and a head on its last output, or on all."""

    def __init__(self, batch_first: bool = True, last: bool = True) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 8, batch_first=batch_first, bidirectional=True)
        self.head = nn.Linear(16, 2)
        self._batch_first = batch_first
        self._last = last

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        if self._last:
            out = out[:, -1] if self._batch_first else out[-1]
        y: Tensor = self.head(out)
        return y


def padded_window(x: Tensor, t: int) -> Tensor:
    """The N inputs up to t, written out by hand."""
    rows = [x[:, s] if s >= 0 else torch.zeros_like(x[:, 0]) for s in range(t - N + 1, t + 1)]
    return torch.stack(rows, dim=1)


def answers(reference: Windowed, x: Tensor) -> Tensor:
    with torch.no_grad():
        return reference.run(x, reference.initial(len(x)))[0]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_y_is_the_modules_own_on_the_last_n_inputs(batch_first: bool, last: bool) -> None:
    """From the first step, zeros standing for what has not come; axes found out by calling."""
    torch.manual_seed(0)
    module = BothWays(batch_first, last).eval()
    reference = find_windowed(module, X, N)
    y = answers(reference, X)
    assert reference.call.gives_steps != last
    assert y.shape == (2, 40, 2)
    for t in (0, 1, N - 2, N - 1, N, 39):
        window = padded_window(X, t)
        with torch.no_grad():
            wanted = module(window if batch_first else window.transpose(0, 1))
        if not last:
            wanted = wanted[:, -1] if batch_first else wanted[-1]
        torch.testing.assert_close(y[:, t], wanted, atol=1e-6, rtol=1e-5)


def test_the_state_is_the_window() -> None:
    """(B, N, I), the last N inputs in their order; any chunks give the same."""
    reference = find_windowed(BothWays().eval(), X, N)
    assert [(s.name, s.shape) for s in reference.states] == [("window", (N, 3))]
    state = reference.initial(2)
    assert not state["window"].any()
    ys = []
    for start, stop in ((0, 1), (1, 4), (4, 17), (17, 40)):
        with torch.no_grad():
            y, state = reference.run(X[:, start:stop], state)
        ys.append(y)
        torch.testing.assert_close(state["window"], padded_window(X, stop - 1), atol=0, rtol=0)
    torch.testing.assert_close(torch.cat(ys, dim=1), answers(reference, X))


def test_token_ids_have_a_window_of_ids() -> None:
    """int64, beginning with the id 0."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 3)
            self.inner = BothWays()

        def forward(self, ids: Tensor) -> Tensor:
            y: Tensor = self.inner(self.table(ids))
            return y

    module = Words().eval()
    ids = IDS
    reference = find_windowed(module, ids, N)
    state = reference.initial(3)["window"]
    assert (state.shape, state.dtype) == ((3, N), torch.int64)
    y = answers(reference, ids)
    for t in (2, 20):
        with torch.no_grad():
            wanted = module(padded_window(ids, t))
        torch.testing.assert_close(y[:, t], wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("horizon", [4, N])
def test_a_horizon_is_an_axis_of_y(horizon: int) -> None:
    """(B, T, horizon, O), even where the horizon is as long as the window."""
    module = Seq2Seq(3, 8, horizon).eval()
    reference = find_windowed(module, X, N)
    y = answers(reference, X)
    assert y.shape == (2, 40, horizon, 3)
    with torch.no_grad():
        torch.testing.assert_close(y[:, 30], module(X[:, 25:31]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_the_score_is_the_error_of_the_reconstruction(score: ScoreKind) -> None:
    """(B, T, 1), over the window and its features, in the model's units."""
    module = AnomalyDetector(3, 8).eval()
    reference = find_windowed(module, X, N, score=score)
    y = answers(reference, X)
    assert y.shape == (2, 40, 1)
    with torch.no_grad():
        error = np.abs((module(X[:, 25:31]) - X[:, 25:31]).numpy()).reshape(2, -1)
    wanted = {"mse": (error**2).mean(1), "mae": error.mean(1), "max": error.max(1)}[score]
    np.testing.assert_allclose(y[:, 30, 0], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("module", "x", "said"),
    [
        (BothWays(), X, r"y has shape \(2, 2\) for 2 windows, expected \(2, 6, ...\)"),
        (BothWays(last=False), X, r"by `mse`.*gives \(1, 6, 2\) for .*float32 \(1, 6, 3\)"),
        (nn.Sequential(nn.Embedding(9, 1), nn.Flatten()), IDS, r"by `mse`.*one window of .*int64"),
    ],
    ids=["one y", "other features", "ids"],
)
def test_a_score_of_what_is_no_reconstruction_is_refused(
    module: nn.Module, x: Tensor, said: str
) -> None:
    """Y must be as X is, in real numbers."""
    with pytest.raises(CallError, match=said):
        find_windowed(module.eval(), x, N, score="mse")


@pytest.mark.parametrize(
    ("module", "axes"),
    [
        (nn.LSTM(3, 8, bidirectional=True), "time, batch"),
        (nn.GRU(3, 8, batch_first=True, bidirectional=True), "batch, time"),
    ],
    ids=["lstm", "gru"],
)
def test_states_of_the_module_begin_anew_at_each_window(module: nn.Module, axes: str) -> None:
    """A bare torch layer: y is the last step of its output, whether the call is given or found."""
    module = module.eval()
    found = find_windowed(module, X, N)
    assert axes in found.describe()
    given = find_windowed(module, X, N, "X, state=None -> Y, state")
    y = answers(found, X)
    torch.testing.assert_close(y, answers(given, X), atol=0, rtol=0)
    window = padded_window(X, 20)
    with torch.no_grad():
        out, _ = module(window if axes == "batch, time" else window.transpose(0, 1))
    wanted = out[:, -1] if axes == "batch, time" else out[-1]
    torch.testing.assert_close(y[:, 20], wanted, atol=1e-6, rtol=1e-5)


def test_a_module_that_squeezes_its_batch_away_is_given_company() -> None:
    """At batch 1 its answer is what that row has in a larger batch."""

    class Squeezing(BothWays):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).squeeze()

    module = Squeezing().eval()
    reference = find_windowed(module, X, N)
    assert reference.call.needs_company
    both = answers(reference, X)
    torch.testing.assert_close(answers(reference, X[:1]), both[:1], atol=1e-6, rtol=1e-5)
    assert both.shape == (2, 40, 2)


def test_rows_that_feel_each_other_are_refused() -> None:
    """A mean over the batch is no model of one session."""

    class Mixing(BothWays):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y - y.mean(0)

    with pytest.raises(CallError, match=r"a row of the batch changes the output of the others"):
        find_windowed(Mixing().eval(), X, N)


def test_a_horizon_as_long_as_the_only_window_must_be_told() -> None:
    """Where no other window can be tried, the two ways are listed."""

    class Fixed(Seq2Seq):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * torch.ones(1, N, 1))

    module = Fixed(3, 8, N).eval()
    with pytest.raises(CallError, match=r'Choose one:\n  --call "X -> Y"\n  --call "X -> y"'):
        find_windowed(module, X, N)
    assert answers(find_windowed(module, X, N, "X -> y"), X).shape == (2, 40, N, 3)
    assert answers(find_windowed(module, X, N, "X -> Y"), X).shape == (2, 40, 3)


@pytest.mark.parametrize(
    ("notation", "said"),
    [
        ("X -> Y", r"y has shape \(2, 2\) for 2 windows, expected \(2, 6, ...\)"),
        ("x, h -> h", "cannot be called on a window: it takes a sequence X"),
        ("X, h -> Y, h", "starts its states itself"),
    ],
)
def test_a_call_that_does_not_fit_a_window_is_refused(notation: str, said: str) -> None:
    """With the reason, and what would fit."""
    with pytest.raises(CallError, match=said):
        find_windowed(BothWays().eval(), X, N, notation)


def test_an_example_shorter_than_the_window_is_refused() -> None:
    """Both lengths are said."""
    with pytest.raises(SourceError, match="example has 40 steps, a window of 41 needs"):
        find_windowed(BothWays().eval(), X, 41)


# The gate ----------------------------------------------------------------------------------------


def cases(reference: Windowed, x: Tensor) -> Cases:
    shape = list(answers(reference, x[:1, :1]).shape[2:])
    window = StatePort(
        name="window", input="window_0", output="window_n", dtype="float32", shape=["B", N, 3]
    )
    ports = Ports(
        x=Port(dtype="float32", shape=["B", "T", 3]),
        y=Port(dtype="float32", shape=["B", "T", *shape]),
        states=[window],
    )
    return Cases(reference, x.numpy(), ports, Pipeline())


def test_the_gate_compares_the_shift_with_windows_cut_from_the_sequence() -> None:
    """Equal for 2,000 steps in all; a shift that drops the wrong input is found."""

    class Shifting(Windowed):
        def run(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            y, new = super().run(x, state)
            return y, {"window": new["window"].roll(1, dims=1)}

    reference = find_windowed(BothWays().eval(), X, N)
    right = cases(reference, X)
    Gate(right).check_causal()
    assert right.teacher_forced.x.shape == (2, 1000, 3)
    assert right.golden.x.shape[1] > N
    wrong = Shifting(reference.module, reference.call, N, X, None)
    with pytest.raises(CausalityError, match="The same window gave two answers"):
        Gate(cases(wrong, X)).check_causal()


def test_rows_of_one_window_each_are_cycled_until_windows_move() -> None:
    """An example of training windows (rows, N, I): golden sequences go on beyond N steps."""
    rows = torch.randn(5, N, 3)
    found = cases(find_windowed(BothWays().eval(), rows, N), rows)
    Gate(found).check_causal()
    assert found.golden.x.shape == (4, 64, 3)
    np.testing.assert_array_equal(found.golden.x[1, :N], rows[1])
    np.testing.assert_array_equal(found.golden.x[1, N : 2 * N], rows[1])


# The command line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--mode", "windowed"], "--mode windowed needs --window N: as many steps as the windows"),
        (["--window", "48"], "--window 48 is for models that need their whole window: say --mode"),
        (["--mode", "causal", "--window", "48"], r"or leave it out (--mode is causal)"),
        (["--mode", "windowed", "--window", "0"], "`0`, expected a number of steps, 1 to"),
        (["--mode", "windowed", "--window", "2.5"], "`2.5`, expected a number of steps"),
        (["--mode", "streaming"], "invalid choice: 'streaming'"),
    ],
)
def test_modes_that_contradict_the_window_are_usage_errors(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, with what to say instead."""
    with pytest.raises(SystemExit, match="2"):
        main(["m:f", "--weights", "w", "--example", "e", "--name", "n", *flags])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "kind", "said"),
    [
        (BidirectionalClassifier(3, 8, 2), CausalityError, "`lstm` is bidirectional"),
        (
            TransformerForecaster(3, 8, 2, 1, 1),
            CausalityError,
            "self_attn` takes step 0 after",
        ),
    ],
    ids=["bidirectional", "transformer"],
)
def test_what_is_not_causal_is_told_of_windowed_mode(
    module: nn.Module, kind: type[Exception], said: str, tmp_path: Path
) -> None:
    """What looks ahead, and the flags that serve it."""
    source = Source("x:y", module.eval(), "0" * 64, X.numpy(), Pipeline())
    with pytest.raises(kind, match=rf"(?s){said}.*`--mode windowed --window N` serves it"):
        export(source, "small", tmp_path)


def test_a_score_of_a_window_needs_a_window() -> None:
    """An alarm on a reconstruction's error, in causal mode: say the window, or that y is it."""
    module = AnomalyDetector(3, 8).eval()
    said = r'scored by `mse`.*--mode windowed --window N.*say "score": "y"'
    with pytest.raises(SourceError, match=said):
        find_reference(module, X, alarm=Alarm(score="mse", threshold=1.0))
    found = find_reference(module, X, window=N, alarm=Alarm(score="mse", threshold=1.0))
    assert "mean squared error of the window's reconstruction" in found.describe()
    found = find_reference(module, X, window=N, alarm=Alarm(score="y", threshold=1.0))
    assert found.describe().endswith("y is the last step of Y")


def test_a_model_that_gives_its_state_is_not_told_so() -> None:
    """A state that no call was found for is to be named in --call, not to be thrown away."""

    class Odd(BothWays):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x), {"h": x[:, 0]}  # type: ignore[return-value]

    for module in (nn.LSTMCell(5, 8), Odd()):
        with pytest.raises(CallError, match="no way was found") as caught:
            find_reference(module.eval(), X)
        assert "--mode windowed" not in str(caught.value)


def test_an_onnx_file_has_no_window() -> None:
    """Its states go in and out, or it is exported from its module."""
    file = OnnxModel("m.onnx", onnx.ModelProto())
    with pytest.raises(SourceError, match=r"takes a torch module, m\.onnx is an ONNX file.*--call"):
        find_reference(file, X, window=N)
