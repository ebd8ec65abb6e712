"""Which inputs and outputs are x, y, states and constants: by `--call`, by name, by shape."""

import pytest
from onnx import TensorProto, helper

from export.errors import CallError
from export.onnx_in.ports import Binding, BoundState, propose_bindings, read_binding
from export.onnx_in.source import OnnxModel

Sides = tuple[dict[str, list[int | str]], dict[str, list[int | str]]]


def model(inputs: dict[str, list[int | str]], outputs: dict[str, list[int | str]]) -> OnnxModel:
    """Ports alone: nothing runs here."""
    ins, outs = (
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in side.items()]
        for side in (inputs, outputs)
    )
    return OnnxModel("some.onnx", helper.make_model(helper.make_graph([], "g", ins, outs)))


H: list[int | str] = ["b", 8]
X: list[int | str] = ["b", 3]


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("h0", "hn", "h"),
        ("h_0", "h_n", "h"),
        ("hx", "hy", "h"),
        ("h_in", "h_out", "h"),
        ("state", "new_state", "state"),
        ("state", "stateN", "state"),
        ("prev_hidden", "next_hidden", "hidden"),
        ("hidden", "hidden.1", "hidden"),
        ("rnn/state_in:0", "rnn/state_out:0", "state"),
    ],
)
def test_names_that_go_together_are_paired(old: str, new: str, name: str) -> None:
    """Among two states of one shape, each by its name."""
    found = propose_bindings(model({"x": X, old: H, "cell_in": H}, {"y": X, "cell_out": H, new: H}))
    states = (BoundState(name, old, new), BoundState("cell", "cell_in", "cell_out"))
    assert found == [Binding("x", "y", states)]


def test_states_of_one_shape_without_names_are_all_the_ways() -> None:
    """Two orders; what tells them apart is a run."""
    found = propose_bindings(model({"x": X, "a": H, "b": H}, {"y": X, "p": H, "q": H}))
    orders = {tuple(s.output for s in b.states) for b in found if b.x == "x" and b.y == "y"}
    assert orders == {("p", "q"), ("q", "p")}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x, h", "no `->`"),
        ("x, h -> y", "each state once on both sides"),
        ("h, c -> h, c", "expected one x"),
        ("x, h, c, d -> y, h, c, d", "names 4, the file has fewer"),
        ("x, h, x -> y, h", "expected one x"),
        ("x, h -> y, h", "nothing of the input `c_in`"),
        ("x, h, c_in=one -> y, h", "`c_in=one` does not give a number"),
        ("x, h, c=1 -> y, h", "no input `c`"),
        ("x, c_in, h_in -> y, c_in, h_in", "another order than the file"),
        ("x, c_in, h -> y, c_in, h", "`c_in` at place 2, where the file has `h_in`"),
    ],
)
def test_a_call_that_does_not_fit_is_an_error(text: str, match: str) -> None:
    """The message shows what does not fit."""
    ours = model({"x": X, "h_in": H, "c_in": H}, {"y": X, "h_out": H, "c_out": H})
    with pytest.raises(CallError, match=match):
        read_binding(ours, text)


def test_a_call_by_place_by_name_and_with_parentheses() -> None:
    """`(h, c)` is as good as `h, c`; `_` is passed over; the file's own names may change order."""
    sides: Sides = {"x": X, "h": H, "c": H}, {"aux": X, "out": X, "h": H, "c": H}
    ours = model(*sides)
    wanted = (BoundState("h", "h", "h"), BoundState("c", "c", "c"))
    by_place = read_binding(ours, "x, (h, c) -> _, y, (h, c)")
    assert by_place == Binding("x", "out", wanted)
    assert by_place.notation(ours) == "x, h, c -> _, y, h, c"
    swapped = read_binding(ours, "x, c, h -> c, h")
    assert swapped == Binding("x", "c", wanted[::-1])


def test_constants_by_place_or_by_name() -> None:
    """A number stands at its input's place; `NAME=number` anywhere."""
    sides: Sides = {"x": X, "rate": [], "h": H}, {"y": X, "h_out": H}
    ours = model(*sides)
    wanted = Binding("x", "y", (BoundState("h", "h", "h_out"),), (("rate", 16000),))
    assert read_binding(ours, "x, 16000, h -> y, h") == wanted
    assert read_binding(ours, "x, h, rate=16000 -> y, h") == wanted
    assert read_binding(ours, "x, h, rate=1.6e4 -> y, h").constants == (("rate", 16000.0),)
    assert wanted.notation(ours) == "x, 16000, h -> y, h"
