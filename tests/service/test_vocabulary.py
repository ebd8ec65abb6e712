"""Text to ids and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import UnknownTokenError
from service.vocabulary import Vocabulary

LETTERS = Vocabulary(["a", "b", "é", "\n"])
WORDS = Vocabulary(["to", "be", " ", "t", "tobe or"])


def test_characters_are_numbered_by_their_place() -> None:
    """Any character may be one: a newline, an accent."""
    ids = LETTERS.ids_of("bé\na")
    assert ids.dtype == np.int64
    assert ids.tolist() == [1, 2, 3, 0]
    assert LETTERS.tokens_of(ids) == ["b", "é", "\n", "a"]


def test_longer_tokens_are_taken_before_shorter_ones() -> None:
    """From the left, the longest that fits; one that fits in part only is not taken."""
    assert WORDS.ids_of("to be").tolist() == [0, 2, 1]
    assert WORDS.ids_of("tobe or").tolist() == [4]
    assert WORDS.ids_of("tobe t").tolist() == [0, 1, 2, 3]


def test_a_list_of_tokens_is_not_split() -> None:
    """The client has split it: `to` `be` is not what `tobe or` is."""
    assert WORDS.ids_of(["to", "be", "t"]).tolist() == [0, 1, 3]
    with pytest.raises(UnknownTokenError, match='holds "tobe" at position 1'):
        WORDS.ids_of(["to", "tobe"])


@pytest.mark.parametrize(
    ("vocabulary", "text", "token", "position"),
    [
        (LETTERS, "ab\nx", "x", 3),
        (WORDS, "to bx", "b", 3),
        (WORDS, "to be\n", "\n", 5),
        (LETTERS, ["a", "ab"], "ab", 1),
    ],
)
def test_an_unknown_token_is_refused_with_its_place(
    vocabulary: Vocabulary, text: str | list[str], token: str, position: int
) -> None:
    """Of a text the position is that of the character, of a list that of the token."""
    with pytest.raises(UnknownTokenError, match="declare an `unknown` token") as refused:
        vocabulary.ids_of(text)
    assert refused.value.data == {"token": token, "position": position}


def test_an_unknown_token_is_read_as_the_one_declared_for_it() -> None:
    """One character at a time, where the tokens are longer."""
    assert Vocabulary("ab?", "?").ids_of("axb").tolist() == [0, 2, 1]
    words = Vocabulary(["<unk>", "to", " "], "<unk>")
    assert words.ids_of("to xy").tolist() == [1, 2, 0, 0]
    assert words.ids_of(["to", "xy"]).tolist() == [1, 0]


@given(st.lists(st.sampled_from(["a", "bc", "abc", "c ", "é"])))
def test_what_is_split_gives_the_text_again(tokens: list[str]) -> None:
    """Whatever the split, no character is lost, doubled or moved."""
    vocabulary = Vocabulary(["a", "b", "c", " ", "bc", "abc", "c ", "é"])
    text = "".join(tokens)
    assert "".join(vocabulary.tokens_of(vocabulary.ids_of(text))) == text
