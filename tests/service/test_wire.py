"""Bodies: what is read, what is refused and how, what is written."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from service.errors import (
    CarouselError,
    InvalidJsonError,
    NotFiniteError,
    RequestError,
    ShapeError,
    UnknownTokenError,
)
from service.vocabulary import Vocabulary
from service.wire import (
    Array,
    RowShape,
    decode_envelope,
    decode_rows,
    encode_answer,
    refuse_not_finite,
)

EIGHT = RowShape((8,), "float32")
ONE = RowShape((1,), "float32")
TOKENS = RowShape((), "int64")
TEXT = RowShape((), "int64", Vocabulary("abé"))
ONE_HOT = RowShape((3,), "float32", Vocabulary("abé"))


def test_an_envelope_keeps_x_raw_until_its_model_is_known() -> None:
    """The optional fields are absent or null."""
    envelope = decode_envelope(b'{"session_id":"s","x":[[1.5]],"step":3,"model":"m:v"}')
    assert (envelope.session_id, envelope.step, envelope.model) == ("s", 3, "m:v")
    assert bytes(envelope.x) == b"[[1.5]]"
    bare = decode_envelope(b' {"x": [[1]], "session_id": "\xc3\xa9", "step": null} ')
    assert (bare.session_id, bare.step, bare.model) == ("é", None, None)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"", InvalidJsonError, "the body is not JSON"),
        (b"hello", InvalidJsonError, "the body is not JSON"),
        (b'{"session_id":"s","x":[[1]]', InvalidJsonError, "the body is not JSON"),
        (b'{"session_id":"s","x":[[1]]} {}', InvalidJsonError, "trailing characters"),
        (b'{"session_id":"s","x":[[1,]]}', InvalidJsonError, "the body is not JSON"),
        (b'{"session_id":"\xff","x":[[1]]}', InvalidJsonError, "can't decode byte 0xff"),
        (b'{"session_id":"\\ud800","x":[[1]]}', InvalidJsonError, "surrogate"),
        (b'{"session_id":"s","x":' + b"[" * 100_000, InvalidJsonError, "the body is not JSON"),
        (b"[]", RequestError, "Expected `object`, got `array`; expected {session_id, x, step"),
        (b'"text"', RequestError, "Expected `object`, got `str`"),
        (b'{"x":[[1]]}', RequestError, "missing required field `session_id`"),
        (b'{"session_id":"s"}', RequestError, "missing required field `x`"),
        (b'{"session_id":"s","x":[[1]],"stpe":1}', RequestError, "unknown field `stpe`"),
        (
            b'{"session_id":7,"x":[[1]]}',
            RequestError,
            "Expected `str`, got `int` - at `session_id`",
        ),
        (b'{"session_id":"","x":[[1]]}', RequestError, "length >= 1 - at `session_id`"),
        (
            b'{"session_id":"' + b"s" * 257 + b'","x":[[1]]}',
            RequestError,
            "length <= 256 - at `session_id`",
        ),
        (b'{"session_id":"s","x":[[1]],"step":-1}', RequestError, ">= 0 - at `step`"),
        (b'{"session_id":"s","x":[[1]],"step":1.0}', RequestError, "got `float` - at `step`"),
        (b'{"session_id":"s","x":[[1]],"step":"1"}', RequestError, "got `str` - at `step`"),
        (b'{"session_id":"s","x":[[1]],"step":true}', RequestError, "got `bool` - at `step`"),
        (
            b'{"session_id":"s","x":[[1]],"step":9223372036854775808}',
            RequestError,
            "`step` is 9223372036854775808, expected at most 9223372036854775807",
        ),
        (b'{"session_id":"s","x":[[1]],"model":""}', RequestError, "length >= 1 - at `model`"),
        (b'{"session_id":"s","x":[[1]],"model":5}', RequestError, "got `int` - at `model`"),
        (b'{"session_id":"s","x":[[NaN]]}', NotFiniteError, "row 0 of `x` holds nan"),
        (b'{"session_id":"s","x":[[1],[-Infinity]]}', NotFiniteError, "row 1 of `x` holds -inf"),
        (b'{"session_id":"s","x":NaN}', NotFiniteError, "`x` holds nan"),
        (b'{"session_id":"s","x":[[1]],"step":NaN}', InvalidJsonError, "not strict JSON"),
    ],
)
def test_a_body_that_is_no_request_is_refused_with_what_was_expected(
    body: bytes, error: type[CarouselError], message: str
) -> None:
    """Not JSON, JSON of something else, and JSON that only Python would write."""
    with pytest.raises(error) as caught:
        decode_envelope(body)
    assert type(caught.value) is error
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("raw", "shape", "error", "message"),
    [
        (
            "[[1,2,3],[1,2,3],[1,2,3],[1,2,3]]",
            EIGHT,
            ShapeError,
            "`x` has shape (4, 3), expected (time, 8) from manifest port `x`",
        ),
        ("[1,2]", ONE, ShapeError, "`x` has shape (2,), expected (time, 1)"),
        ("1", ONE, ShapeError, "`x` has shape (), expected (time, 1)"),
        ("[[[1]]]", ONE, ShapeError, "`x` has shape (1, 1, 1), expected (time, 1)"),
        ("[]", ONE, ShapeError, "has shape (0,), expected (time, 1) with at least one step"),
        ("[[]]", ONE, ShapeError, "has shape (1, 0), expected (time, 1) with at least one step"),
        (
            "[[1],[1,2]]",
            ONE,
            ShapeError,
            "`x[1]` has 2 values, `x[0]` has 1 values, expected (time",
        ),
        ("[[1],2]", ONE, ShapeError, "`x[1]` has no list, `x[0]` has 1 values"),
        ('[["1.5"]]', ONE, ShapeError, '`x[0][0]` is "1.5", not a number, expected (time, 1)'),
        ("[[1],[true]]", ONE, ShapeError, "`x[1][0]` is true, not a number"),
        ("[[null]]", ONE, ShapeError, "`x[0][0]` is null, not a number"),
        ("null", ONE, ShapeError, "`x` is null, not a number"),
        ('{"a": 1}', ONE, ShapeError, '`x` is {"a": 1}, not a number'),
        ('[["' + "z" * 99 + '"]]', ONE, ShapeError, "zzz..., not a number"),
        ("[[1],[1e999]]", ONE, NotFiniteError, "row 1 of `x` holds inf, expected finite numbers"),
        ("[[-1e999]]", ONE, NotFiniteError, "row 0 of `x` holds -inf"),
        ("[[" + "9" * 400 + "]]", ONE, NotFiniteError, "row 0 of `x` holds inf"),
        ("[]", TOKENS, ShapeError, "has shape (0,), expected (time,) with at least one step"),
        ("[1.0]", TOKENS, ShapeError, "`x[0]` is 1.0, not an integer, expected (time,)"),
        ("[1,9223372036854775808]", TOKENS, ShapeError, "`x[1]` is 9223372036854775808, beyond 64"),
        ("[" * 900 + "]" * 900, ONE, ShapeError, "`x`"),
        ('["\\ud800"]', ONE, ShapeError, "not a number"),
        ('"ab"', TOKENS, ShapeError, '`x` is "ab", not an integer, expected (time,)'),
        ('""', TEXT, ShapeError, "has shape (0,), expected (time,), text, or a list of tokens"),
        ("[]", TEXT, ShapeError, "has shape (0,), expected (time,), text, or a list of tokens"),
        ('"abc"', TEXT, UnknownTokenError, '`x` holds "c" at position 2'),
        ('["a",1]', TEXT, ShapeError, "`x[1]` is 1, not a token, expected (time,), text, or a"),
        ('[1,"a"]', TEXT, ShapeError, '`x[1]` is "a", not an integer, expected (time,), text'),
        ('[["a"]]', TEXT, ShapeError, '`x[0]` is ["a"], not a token'),
        ('"\\ud800"', TEXT, InvalidJsonError, "half of a surrogate pair"),
        ('"a', TEXT, InvalidJsonError, "`x` is not JSON"),
        ('["' + "z" * 9, TEXT, InvalidJsonError, "`x` is not JSON"),
        ("[" * 900 + '"' + "]" * 900, TEXT, InvalidJsonError, "`x` is not JSON"),
        ("[" * 9000 + '"a"' + "]" * 9000, TEXT, ShapeError, "nested too deeply"),
        ("[2]", ONE_HOT, ShapeError, "has shape (1,), expected (time, 3), text, or a list of"),
    ],
)
def test_an_x_that_does_not_fit_the_port_is_refused_with_the_place(
    raw: str, shape: RowShape, error: type[CarouselError], message: str
) -> None:
    """Got, expected, where."""
    with pytest.raises(error) as caught:
        decode_rows(raw.encode(), shape)
    assert type(caught.value) is error
    assert message in caught.value.message


def test_the_row_and_the_shapes_are_data_too() -> None:
    """A client need not parse the message."""
    with pytest.raises(NotFiniteError) as not_finite:
        decode_rows(b"[[1],[2],[1e999]]", ONE)
    assert not_finite.value.data == {"row": 2}
    with pytest.raises(ShapeError) as wrong:
        decode_rows(b"[[1,2]]", EIGHT)
    assert wrong.value.data == {"got": [1, 2], "expected": ["time", 8]}


@given(
    x=npst.arrays(
        np.float64,
        st.tuples(st.integers(1, 5), st.just(8)),
        elements=st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_every_finite_number_survives_the_wire(x: Array) -> None:
    """JSON digits are read to the nearest float64."""
    read = decode_rows(json.dumps(x.tolist()).encode(), EIGHT)
    assert read.dtype == np.float64
    assert np.array_equal(read, x)


def test_integers_are_numbers_and_tokens_are_integers() -> None:
    """A float port takes 1 for 1.0; a token port reads int64 of rank 1."""
    assert decode_rows(b"[[1],[-2]]", ONE).tolist() == [[1.0], [-2.0]]
    tokens = decode_rows(b"[1,2,9223372036854775807]", TOKENS)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [1, 2, 2**63 - 1]


@pytest.mark.parametrize("shape", [TEXT, ONE_HOT])
def test_text_is_read_as_ids_where_there_is_a_vocabulary(shape: RowShape) -> None:
    """A string, or a list of its tokens; escaped or not; what is one-hot is made so later."""
    for raw in ('"aéb"', ' "a\\u00e9b" ', '["a","é","b"]', '[ "a" , "é", "b"]'):
        ids = decode_rows(raw.encode(), shape)
        assert (str(ids.dtype), ids.tolist()) == ("int64", [0, 2, 1])


def test_numbers_stay_numbers_where_there_is_a_vocabulary() -> None:
    """Ids, and one-hot rows."""
    assert decode_rows(b"[2,0]", TEXT).tolist() == [2, 0]
    assert decode_rows(b"[[0,0,1]]", ONE_HOT).tolist() == [[0.0, 0.0, 1.0]]


def test_want_and_choose_are_optional() -> None:
    """What a reply should hold, and how a token is chosen."""
    bare = decode_envelope(b'{"session_id":"s","x":"ab"}')
    assert (bare.want, bare.choose, bytes(bare.x)) == (None, None, b'"ab"')
    full = decode_envelope(b'{"session_id":"s","x":[1],"want":["y"],"choose":{"method":"argmax"}}')
    assert (full.want, full.choose) == (["y"], {"method": "argmax"})
    for wrong in (b'"want":"y"', b'"want":[1]', b'"choose":"argmax"', b'"choose":[]'):
        with pytest.raises(RequestError, match="Expected"):
            decode_envelope(b'{"session_id":"s","x":[1],' + wrong + b"}")


def test_a_float32_answer_has_the_shortest_digits_and_a_float64_one_all_of_them() -> None:
    """0.1 in float32 is written as 0.1."""
    narrow = encode_answer("s", "m", "v", 2, True, {"y": np.array([[0.1], [1e-7]], np.float32)})
    assert narrow == (
        b'{"session_id":"s","model":"m","version":"v","step":2,"created":true,"y":[[0.1],[1e-7]]}'
    )
    wide = encode_answer("s", "m", "v", 1, False, {"y": np.array([[1 / 3]], np.float64)})
    assert json.loads(wide)["y"] == [[1 / 3]]


def test_refuse_not_finite_names_the_first_bad_row() -> None:
    """NaN or infinity, in any column."""
    x = np.zeros((3, 2))
    refuse_not_finite(x)
    x[2, 1] = np.nan
    x[1, 0] = np.inf
    with pytest.raises(NotFiniteError, match="row 1 of `x` is not finite here") as caught:
        refuse_not_finite(x, " here")
    assert caught.value.data == {"row": 1}
