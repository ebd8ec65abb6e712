"""Text that every Python brings along: the help on its language, ``pydoc_data.topics``.

The text is another in each version of Python, and so are the scores on it.
"""

from dataclasses import dataclass
from pydoc_data.topics import topics

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

UNKNOWN = "\ufffd"  # Unicode's replacement character: stands for what training never saw
HOLDOUT_CHARACTERS = 12_000
VALIDATION_CHARACTERS = 20_000


@dataclass(frozen=True)
class Text:
    """A text as token ids, cut in three, one part after the other.

    Args:
        name: for tables.
        vocabulary: the characters, in the order of their ids; the last is ``UNKNOWN``.
        train, validation, holdout: (T,) int64, token ids.
    """

    name: str
    vocabulary: tuple[str, ...]
    train: Ids
    validation: Ids
    holdout: Ids


def python_topics() -> Text:
    """What ``help("topics")`` knows, in its own order, the end held out."""
    return read("Python help", "".join(topics.values()), VALIDATION_CHARACTERS, HOLDOUT_CHARACTERS)


def read(name: str, text: str, validation: int, holdout: int) -> Text:
    """Number the characters of a text. The vocabulary is that of its training part.

    Args:
        name: for tables.
        text: what is read.
        validation, holdout: characters of the two last parts.
    """
    train_end, validation_end = len(text) - validation - holdout, len(text) - holdout
    vocabulary = (*sorted(set(text[:train_end])), UNKNOWN)
    number = {character: index for index, character in enumerate(vocabulary)}
    unknown = number[UNKNOWN]
    ids = np.array([number.get(character, unknown) for character in text], dtype=np.int64)
    return Text(
        name, vocabulary, ids[:train_end], ids[train_end:validation_end], ids[validation_end:]
    )
