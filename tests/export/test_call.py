"""The notation of --call."""

import re

import pytest

from export.calling.call import parse_call
from export.calling.tree import Fixed, Keyed, Listed, Named, spell
from export.errors import CallError


def test_a_step_with_a_tuple_of_states() -> None:
    """Parentheses become tuples; without a y the first state is the output."""
    call = parse_call("x, (h, c) -> h, c")
    assert call.arguments == ("x", ("h", "c"))
    assert call.results == ("h", "c")
    assert call.states == ("h", "c")
    assert (call.output, call.is_sequence, call.starts_itself) == ("h", False, False)


def test_a_sequence_that_starts_itself() -> None:
    """`=None` says that the module makes its own first state."""
    call = parse_call(" X,(h,c) = None->Y, (h, c)")
    assert call.results == ("Y", ("h", "c"))
    assert (call.output, call.is_sequence, call.starts_itself) == ("Y", True, True)


def test_a_sequence_of_which_the_last_step_is_answered() -> None:
    """`X -> y`: one output a call."""
    assert parse_call("X, h -> y, h").is_last_only
    assert not parse_call("X, h -> Y, h").is_last_only
    assert not parse_call("x, h -> y, h").is_last_only


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x, h", "no `->`"),
        ("x, h -> y, c", r"takes the states \['h'\] and returns \['c'\]"),
        ("h -> h", "needs one x"),
        ("x, (h -> h", "not closed"),
        ("x, h) -> h", "not expected"),
        ("x, -> h", "ends too early"),
        ("x, h; -> h", "cannot be read"),
        ("X, h -> h", "name its output Y, or y"),
        ("x, h -> _", r"takes the states \['h'\]"),
        ("x -> _", "names no output"),
        ("x, h, mask -> h", r"as in `mask:1`"),
        ("x, h, mask:0 -> h", "expected a width"),
        ("x, h:2 -> h", "takes no width"),
        ("x, (a=h) -> h", "inside a group"),
        ("x, () -> h", "holds nothing"),
        ("x, [h -> h", r"`\[` is not closed"),
        ("x, {1: h} -> h", "is not expected"),
        ("x, h -> x", "returns an input|states"),
        ("x, h -> Y, h", "name its output y"),
        ("X, h -> Y, y, h", "both y and Y"),
        ("x, h -> g=y, h", "marks a state"),
        ("x, h, g -> h=y, g=y", "marks two"),
        ("x, lengths, h -> h", "has no `lengths`"),
        ("x, h -> h; batch first", "after `;`, expected one of"),
        ("x, h, h -> h", "once on both sides"),
    ],
)
def test_a_malformed_notation_is_refused(text: str, said: str) -> None:
    """The message quotes the notation and says what is wrong with it."""
    with pytest.raises(CallError, match=said):
        parse_call(text)


def test_lists_dicts_keywords_and_fixed_arguments() -> None:
    """Every kind of container, keyword and literal has its place in the tree."""
    call = parse_call("x, [(h1, c1), (h2,)], {a: a, key: b}, True, -1.5, hx=n, mask=None -> y, "
                      "[(h1, c1), (h2,)], {a, key: b}, n")  # fmt: skip
    assert call.arguments == (
        "x",
        Listed((("h1", "c1"), ("h2",))),
        Keyed((("a", "a"), ("key", "b"))),
        Fixed(True),
        Fixed(-1.5),
        Named("hx", "n"),
        Named("mask", Fixed(None)),
    )
    assert call.states == ("h1", "c1", "h2", "a", "b", "n")
    assert call.optional == frozenset()
    assert call.results[2] == Keyed((("a", "a"), ("key", "b")))


def test_which_states_may_be_none() -> None:
    """`=None` belongs to the name or group before it, also in a keyword."""
    assert parse_call("X, h=None, c -> Y, h, c").optional == {"h"}
    assert parse_call("X, s=(h, c)=None -> Y, h, c").optional == {"h", "c"}


def test_further_inputs_and_what_export_makes() -> None:
    """A width marks columns of the example; `lengths` and `t` are no states unless returned."""
    call = parse_call("X, mask:1, h, lengths, side:3, t -> Y, h")
    assert call.widths == {"mask": 1, "side": 3}
    assert call.states == ("h",)
    assert call.made == ("lengths", "t")
    assert parse_call("x, h, t -> h, t").states == ("h", "t")


def test_what_is_dropped_and_what_is_the_output() -> None:
    """Names on the right alone are dropped; the output is y, the marked state, h, or the first."""
    call = parse_call("x, (h, c) -> y, y, (h, c), attention, _")
    assert call.dropped == ("attention", "_")
    assert call.output == "y"
    assert parse_call("x, c, h -> c, h").output == "h"
    assert parse_call("x, a, b -> a, b").output == "a"
    assert parse_call("x, [h1, h2] -> [h1, h2=y]").output == "h2"


@pytest.mark.parametrize("axes", ["X is (time, batch, ...)", "X is (batch, time, ...)"])
def test_the_axis_of_time_may_be_told(axes: str) -> None:
    """In the words in which describe() says it."""
    call = parse_call(f"X, h -> Y, h; {axes}")
    assert call.time_axis == int(axes == "X is (batch, time, ...)")
    assert call.text == "X, h -> Y, h"


@pytest.mark.parametrize(
    "text", ["x", "(h, c)", "(h,)", "[(h1, c1), (h2, c2)]", "{a: h, b: (c,)}", "hx=(h, c)", "True"]
)
def test_a_tree_is_spelled_as_it_is_read(text: str) -> None:
    """spell() is the reverse of the parser."""
    names = re.findall(r"\b[hc]\d?\b", text)
    call = parse_call(f"{text}, X -> {', '.join(['Y', *names])}".replace("x, X", "x").replace(
        "x -> Y", "x -> y"))  # fmt: skip
    assert spell(call.arguments[0]) == text
