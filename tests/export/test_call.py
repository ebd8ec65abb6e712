"""The notation of --call."""

import pytest

from export.call import parse_call
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
        ("x -> y", "takes the states"),
        ("x, h, h -> h", "once on both sides"),
    ],
)
def test_a_malformed_notation_is_refused(text: str, said: str) -> None:
    """The message quotes the notation and says what is wrong with it."""
    with pytest.raises(CallError, match=said):
        parse_call(text)
