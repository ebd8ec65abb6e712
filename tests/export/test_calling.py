"""Modules called as different people write them become one `run(x, state)`, batch first."""

import copy

import pytest
import torch
from torch import Tensor, nn

from export.calling.attributes import Attributes
from export.calling.called import find_call
from export.calling.probing import STEPS
from export.errors import CallError, CarryError
from tests.export import styles as S

X = torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(0))
PAIR = {"h": (6,), "c": (6,)}
KEPT = {"hidden_0": (6,), "hidden_1": (6,)}
LAYERS = {"h1": (6,), "c1": (6,), "h2": (6,), "c2": (6,)}
DICT_OUT = "x, (h, c) -> {output: y, state: (h, c)}"
ATTRIBUTES = "x, (h, c) -> {logits: y, hidden: (h, c)}"


def build(style: type[nn.Module], *arguments: int) -> nn.Module:
    torch.manual_seed(0)
    return style(*arguments).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("style", "told", "call", "shapes"),
    [
        (S.Nested, None, "(x, (h, c)) -> h, c", PAIR),
        (S.StateFirst, None, "(h, c), x -> y, (h, c)", PAIR),
        (S.Keywords, "x, hx=(h, c) -> h, c", "x, hx=(h, c) -> h, c", PAIR),
        (S.DictOut, DICT_OUT, DICT_OUT, PAIR),
        (S.DictIn, None, "x, {h, c} -> {h, c}", PAIR),
        (S.Attributes, ATTRIBUTES, ATTRIBUTES, PAIR),
        (S.Named, None, "x, (h, c) -> y, (h, c)", PAIR),
        (S.Named, "x, (h, c) -> {y, hidden: (h, c)}", "x, (h, c) -> {y, hidden: (h, c)}", PAIR),
        (S.Concatenated, None, "x, h -> y, h", {"h": (12,)}),
        (S.StackedFirst, None, "x, h -> y, h", {"h": (2, 6)}),
        (S.StackedSecond, None, "x, h -> y, h", {"h": (2, 6)}),
        (S.StackedLast, "x, s -> y, s", "x, s -> y, s", {"s": (6, 2)}),
        (S.LayeredPacked, "x, s -> y, s", "x, s -> y, s", {"s": (1, 12)}),
        (S.OneElement, "x, (s,) -> y, (s,)", "x, (s,) -> y, (s,)", {"s": (12,)}),
        (S.FourStates, None, "x, h1, c1, h2, c2 -> y, h1, c1, h2, c2", LAYERS),
        (
            S.LayerList,
            None,
            "X, [(h1, c1), (h2, c2)]=None -> Y, [(h1, c1), (h2, c2)]",
            LAYERS,
        ),
        (S.KeptLazily, None, "x -> y", KEPT),
        (S.KeptInBuffers, "x -> y", "x -> y", PAIR),
        (S.KeptLayer, "X -> Y", "X -> Y", {"hidden_0": (1, 6), "hidden_1": (1, 6)}),
        (S.BatchOfOne, "X -> Y", "X -> Y", {"hidden_0": (1, 1, 6), "hidden_1": (1, 1, 6)}),
        (S.Vectors, "x, h -> h", "x, h -> h", {"h": (6,)}),
        (S.Columns, None, "x, h -> h", {"h": (6,)}),
        (S.LearnedStart, None, "X, (h, c)=None -> Y, (h, c)", PAIR),
        (S.InitialMethod, None, "x, (h, c) -> y, (h, c)", PAIR),
        (S.Squeezing, None, "x, (h, c) -> y, (h, c)", PAIR),
        (S.MixedAxes, None, "X, (h, c)=None -> Y, (h, c)", {"h": (1, 6), "c": (1, 6)}),
        (
            S.PackedLengths,
            "X, lengths -> Y, _",
            "X, lengths -> Y, _, with its state h, c lifted out",
            {"h": (1, 6), "c": (1, 6)},
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_chunks_with_the_state_carried_equal_the_module_by_itself(
    style: type[nn.Module], told: str | None, call: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    """The call and the states are found; cut anywhere, or one row alone, y is the module's own."""
    reference = find_call(build(style), X, told)
    assert reference.call.text == call
    assert {s.name: s.shape for s in reference.states} == shapes
    steps = [0, 1, 11, 23]
    with torch.no_grad():
        wanted = reference.whole(X, steps)
        first, state = reference.run(X[:, :7], reference.initial(2))
        second, _ = reference.run(X[:, 7:], state)
        alone, _ = reference.run(X[1:], reference.initial(1))
    assert wanted.abs().max() > 0.01
    got = torch.cat([first, second], dim=1)[:, steps]
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(alone[:, steps], wanted[1:], atol=1e-6, rtol=1e-5)


def test_the_answers_are_those_of_the_users_own_loop() -> None:
    """Run by hand as its author would, the module gives the same y and the same states."""
    module = build(S.StateFirst)
    reference = find_call(module, X)
    h = c = torch.zeros(2, 6)
    for t in range(24):
        y, (h, c) = module((h, c), X[:, t])
    got, state = reference.run(X, reference.initial(2))
    torch.testing.assert_close(got[:, -1], y)
    torch.testing.assert_close(state["h"], h)
    torch.testing.assert_close(state["c"], c)


@pytest.mark.parametrize("style", [S.KeptLazily, S.KeptInBuffers, S.KeptLayer, S.BatchOfOne])
def test_a_module_that_keeps_its_state_is_left_as_it_was(style: type[nn.Module]) -> None:
    """No attribute or buffer has changed, neither by finding out nor by running."""
    module = build(style)
    before = copy.deepcopy({k: v for k, v in vars(module).items() if k != "_modules"})
    attributes = Attributes(module)
    reference = find_call(module, X, "x -> y" if hasattr(module, "gates") else "X -> Y")
    reference.run(X, reference.initial(2))
    reference.whole(X, [3])
    assert not attributes.changed()
    for name in ("hidden", "attention", "calls"):
        assert str(before.get(name)) == str(getattr(module, name, None))


def test_a_stored_attention_map_is_no_state() -> None:
    """Only what the next answer depends on is carried; `attention` and `calls` are not."""
    reference = find_call(build(S.KeptLazily), X, "x -> y")
    assert [s.name for s in reference.states] == ["hidden_0", "hidden_1"]


@pytest.mark.parametrize(
    ("style", "call", "name", "start"),
    [
        (S.LearnedStart, "X, (h, c)=None -> Y, (h, c)", "h", "h0"),
        (S.KeptInBuffers, "x -> y", "h", "h0"),
    ],
)
def test_a_learned_start_is_found(style: type[nn.Module], call: str, name: str, start: str) -> None:
    """What stands for None, or what reset() puts there, is where sessions begin."""
    module = build(style)
    reference = find_call(module, X, call)
    wanted = getattr(module, start).reshape(1, 6).expand(3, 6)
    assert torch.equal(reference.initial(3)[name], wanted)
    ones = torch.ones(3, 6) if style is S.LearnedStart else torch.zeros(3, 6)
    assert torch.equal(reference.initial(3)["c"], ones)


def test_a_start_that_a_method_makes_is_taken() -> None:
    """`init_hidden(batch)` says where a module that is always given its state begins."""
    module = build(S.InitialMethod)
    initial = find_call(module, X).initial(2)
    h, c = module.init_hidden(2)  # type: ignore[operator]
    assert torch.equal(initial["h"], h)
    assert torch.equal(initial["c"], c)


@pytest.mark.parametrize(
    ("style", "said"),
    [
        (S.ComputedStart, r"neither zeros nor ones .* `init_state\(batch\)`"),
        (S.RandomStart, r"another state at each call \(random"),
        (S.Counting, r"`n` is a Python int that changes .* as a tensor"),
    ],
)
def test_what_cannot_be_carried_is_refused_with_the_way_out(
    style: type[nn.Module], said: str
) -> None:
    """No silent start from zeros, and no state that a server cannot hold."""
    with pytest.raises(CarryError, match=said):
        find_call(build(style), X)


def test_a_computed_start_gives_way_to_a_method() -> None:
    """The way out of the error above leads somewhere."""

    class Mended(S.ComputedStart):
        def init_state(self, batch: int) -> S.Pair:
            return torch.ones(batch, 6), torch.zeros(batch, 6)

    reference = find_call(build(Mended), X)
    assert torch.equal(reference.initial(2)["h"], torch.ones(2, 6))
    y, _ = reference.run(X, reference.initial(2))
    assert torch.equal(reference.whole(X, [5])[:, 0], y[:, 5])


def test_a_mask_is_a_column_of_the_example() -> None:
    """`mask:1` is the example's last column; where it is zero, the state stays."""
    module = build(S.Masked, 2)
    reference = find_call(module, X, "x, mask:1, (h, c) -> h, c")
    mask = torch.tensor([1.0, 0.0]).repeat(2, 12).unsqueeze(-1)
    y, _ = reference.run(torch.cat([X[..., :2], mask], -1), reference.initial(2))
    assert torch.equal(y[:, 1::2], y[:, ::2])
    h = c = torch.zeros(2, 6)
    for t in range(24):
        h, c = module(X[:, t, :2], mask[:, t], (h, c))
        torch.testing.assert_close(y[:, t], h)


def test_several_further_inputs_stand_in_the_order_of_the_notation() -> None:
    """x, then each of its width, side by side in the example."""

    class Sided(S.Base):
        def forward(
            self, side: torch.Tensor, x: torch.Tensor, mask: torch.Tensor, hx: S.Pair
        ) -> tuple[torch.Tensor, S.Pair]:
            h, c = self.cell(x, *hx)
            return torch.cat([h, side, mask], dim=-1), (h, c)

    told = "side:2, x, mask:1, (h, c) -> y, (h, c)"
    reference = find_call(build(Sided, 1), X[..., [0, 1, 2, 0]], told)
    x = torch.arange(1.0, 5.0).repeat(1, 3, 1)
    y, _ = reference.run(x, reference.initial(1))
    assert y[0, 0, 6:].tolist() == [2.0, 3.0, 4.0]


def test_a_reset_column_begins_a_session_anew() -> None:
    """A flag that the module wants as (B,) bool; after it the past is forgotten."""
    reference = find_call(build(S.ResetMask, 2), X, "x, (h, c), done:1 -> y, (h, c)")
    assert "done is given as (batch) bool" in reference.describe()
    x = torch.cat([X[..., :2], torch.zeros(2, 24, 1)], -1)
    x[:, 10, -1] = 1.0
    y, _ = reference.run(x, reference.initial(2))
    x[:, 10, -1] = 0.0
    anew, _ = reference.run(x[:, 10:], reference.initial(2))
    torch.testing.assert_close(y[:, 10:], anew)


def test_the_index_of_the_step_is_a_state() -> None:
    """`t` counts from the session's first step, whatever the chunks."""
    module = build(S.Timed)
    reference = find_call(module, X, "x, (h, c), t -> h, c")
    _, state = reference.run(X[:, :9], reference.initial(2))
    assert torch.equal(state["t"], torch.full((2, 1), 9.0))
    rest, state = reference.run(X[:, 9:], state)
    h = c = torch.zeros(2, 6)
    for t in range(24):
        h, c = module(X[:, t], (h, c), torch.full((2,), t))
    torch.testing.assert_close(rest[:, -1], h)


def test_several_outputs_are_joined_and_others_dropped() -> None:
    """mu (B, 2) and sigma (B,) make y (B, T, 3); describe() says what is dropped."""
    module = build(S.Extra)
    reference = find_call(module, X, "x, (h, c) -> y, y, (h, c), attention")
    assert reference.describe().endswith("attention is dropped")
    y, _ = reference.run(X, reference.initial(2))
    mu, sigma, _, _ = module(X[:, 0], (torch.zeros(2, 6), torch.zeros(2, 6)))
    assert y.shape == (2, 24, 3)
    torch.testing.assert_close(y[:, 0], torch.cat([mu, sigma[:, None]], -1))


def test_too_few_columns_are_refused() -> None:
    """An example without the further inputs' columns is said so."""
    with pytest.raises(CallError, match=r"takes 3 of the example's last columns"):
        find_call(build(S.Masked, 2), X, "x, mask:3, (h, c) -> h, c")


def test_rows_that_meet_are_no_batch() -> None:
    """A module that mixes the rows of its batch is not taken for one that has a batch there."""

    class Mixing(S.Base):
        def forward(self, x: torch.Tensor, hx: S.Pair) -> S.Pair:
            return self.cell(x - x.mean(0), *hx)

    with pytest.raises(CallError, match="depends on the other rows"):
        find_call(build(Mixing), X, "x, (h, c) -> h, c")


def test_a_state_that_grows_with_the_chunk_is_no_state() -> None:
    """An attention map (B, T) that comes back beside Y is not carried as if it were one."""

    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(3, 1)

        def forward(
            self, x: torch.Tensor, mask: torch.Tensor | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            weights = self.score(x).squeeze(-1).softmax(-1)
            return x * weights.unsqueeze(-1), weights

    with pytest.raises(CallError, match="no way was found"):
        find_call(build(Attentive), X)


def test_an_output_as_wide_as_the_probe_is_long_has_no_steps() -> None:
    """y of five features is told from Y of five steps by a shorter X."""

    class Five(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)
            self.head = nn.Linear(4, STEPS)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.lstm(x)[0][:, -1])
            return y

    found = find_call(Five().eval(), torch.randn(3, 20, 3))
    assert found.describe().startswith("X -> y,")
