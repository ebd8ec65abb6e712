"""The tokens of a text model: text to ids, ids to text."""

import json
from collections.abc import Sequence

import numpy as np

from service.errors import UnknownTokenError

Array = np.ndarray


class Vocabulary:
    """Tokens, numbered by their place in the list.

    A text whose vocabulary is single characters is split into characters. Any other text is split
    from the left, each time into the longest token that fits; a client that wants it split
    otherwise sends the tokens as a list.
    """

    def __init__(self, tokens: Sequence[str], unknown: str | None = None) -> None:
        """Args:
        tokens: unique, none of them empty.
        unknown: the token that is read for one that is not there; None: that is an error.
        """
        self.tokens = tuple(tokens)
        self.is_characters = all(len(token) == 1 for token in tokens)
        self._ids = {token: number for number, token in enumerate(tokens)}
        self._unknown = None if unknown is None else self._ids[unknown]
        self._lengths = _lengths_by_first_character(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def ids_of(self, text: str | Sequence[str]) -> Array:
        """Text, or its tokens -> (T,) int64.

        Raises:
            UnknownTokenError: a token is not in the vocabulary, and nothing stands for it.
        """
        splits = isinstance(text, str) and not self.is_characters
        tokens = self._split(str(text)) if splits else text
        ids = [self._ids.get(token) for token in tokens]
        if None in ids:
            if self._unknown is None:
                place = ids.index(None)
                before = sum(map(len, tokens[:place])) if splits else place
                raise self._not_there(tokens[place], before, isinstance(text, str))
            ids = [self._unknown if number is None else number for number in ids]
        return np.array(ids, np.int64)

    def tokens_of(self, ids: Array) -> list[str]:
        """(T,) ids -> their tokens."""
        return [self.tokens[number] for number in ids.tolist()]

    def _split(self, text: str) -> list[str]:
        """The longest token that fits, again and again; a character where none does."""
        tokens: list[str] = []
        at = 0
        while at < len(text):
            for length in self._lengths.get(text[at], ()):
                if text[at : at + length] in self._ids:
                    break
            else:
                length = 1
            tokens.append(text[at : at + length])
            at += length
        return tokens

    def _not_there(self, token: str, position: int, is_text: bool) -> UnknownTokenError:
        hint = "" if self.is_characters or not is_text else ", send the tokens as a list"
        return UnknownTokenError(
            f"`x` holds {_quote(token)} at position {position}, which is none of the vocabulary's "
            f"{len(self)} tokens; leave it out{hint}, or declare an `unknown` token in the "
            "pipeline and export again",
            token=token,
            position=position,
        )


def _lengths_by_first_character(tokens: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The lengths of the tokens that begin with a character, longest first."""
    found: dict[str, set[int]] = {}
    for token in tokens:
        found.setdefault(token[0], set()).add(len(token))
    return {first: tuple(sorted(lengths, reverse=True)) for first, lengths in found.items()}


def _quote(token: str) -> str:
    text = json.dumps(token, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
