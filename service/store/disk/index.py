"""Which slot holds which key: open addressing in a mapped file; see `layout`.

Entries never move within one file. What needs another order or size (too many of sessions that are
gone, more sessions than foreseen) is written to a new file, and then the header's generation says
which file counts: processes see that at their next call. Writing is for whoever holds the lock;
whoever reads without it reads a word again after the slot.
"""

import os
from pathlib import Path

import numpy as np

from service.errors import InternalError
from service.store.disk.layout import (
    AT_GENERATION,
    AT_LIVE,
    AT_TOMBS,
    DUE,
    EMPTY,
    ENTRY_WORDS,
    TOMB,
    WORD,
)
from service.store.disk.mapping import grow, map_file, open_file

Array = np.ndarray

ENTRY_BYTES = 8 * ENTRY_WORDS
# Places past the last home, so that no search wraps around; at the loads here the longest run of
# full ones is far below that. The last of them stays empty, and ends every search.
OVERHANG = 1024
LEAST_BITS = 10
LOAD = 0.6  # sessions to homes, at most
CROWDED = 0.8  # sessions and tombs to homes: time to write it anew


class Index:
    """The index of the generation that the header names."""

    def __init__(self, directory: Path, header: memoryview) -> None:
        self._directory = directory
        self._header = header
        self._map()

    def refresh(self) -> None:
        """Go over to another file, if there is one since."""
        if self._header[AT_GENERATION] != self.generation:
            self._map()

    def _map(self) -> None:
        while True:
            generation = self._header[AT_GENERATION]
            try:
                fd = os.open(path_of(self._directory, generation), os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                if self._header[AT_GENERATION] == generation:
                    raise
                continue  # it was replaced between the two lines
            try:
                size = os.fstat(fd).st_size
                self.words = map_file(fd, size).cast("Q")
            finally:
                os.close(fd)
            self.generation = generation
            self.flat: Array = np.frombuffer(self.words, np.uint64)
            self.entries: Array = self.flat.reshape(-1, ENTRY_WORDS)
            self._shift = 64 - _bits_of(size)
            return

    def find(self, high: int, low: int) -> int | None:
        """The place (of its first word) of the entry with this hash."""
        words = self.words
        at = (high >> self._shift) * ENTRY_WORDS
        while (word := words[at + WORD]) != EMPTY:
            if word != TOMB and words[at] == high and words[at + 1] == low:
                return at
            at += ENTRY_WORDS
        return None

    def insert(self, high: int, low: int, due: int, word: int) -> int:
        """Publish the word of a hash that has none; its place."""
        words = self.words
        at = (high >> self._shift) * ENTRY_WORDS
        while words[at + WORD] > TOMB:
            at += ENTRY_WORDS
        if at + ENTRY_WORDS >= len(words):
            raise InternalError("the index of the sessions has no place left")  # see `make_room`
        if words[at + WORD] == TOMB:
            self._header[AT_TOMBS] -= 1
        words[at], words[at + 1], words[at + DUE] = high, low, due
        words[at + WORD] = word
        return at

    def remove(self, at: int) -> None:
        """Leave a tomb where others may lie behind it, else none."""
        words = self.words
        if words[at + ENTRY_WORDS + WORD] != EMPTY:
            words[at + WORD] = TOMB
            self._header[AT_TOMBS] += 1
            return
        words[at + WORD] = EMPTY
        while at and words[at - ENTRY_WORDS + WORD] == TOMB:
            at -= ENTRY_WORDS
            words[at + WORD] = EMPTY
            self._header[AT_TOMBS] -= 1

    def make_room(self, sessions: int = 0) -> None:
        """Have homes for `sessions`, and for one more than there are.

        Raises:
            StoreFullError: it would have to be written anew, and the disk is full.
        """
        homes = 1 << 64 - self._shift
        bits = bits_for(max(sessions, self._header[AT_LIVE] + 1))
        used = self._header[AT_LIVE] + self._header[AT_TOMBS] + 1
        if bits <= 64 - self._shift and used <= CROWDED * homes:
            return
        live = self.entries[self.entries[:, WORD] > TOMB]
        self.replace(live, max(bits, 64 - self._shift))

    def replace(self, live: Array, bits: int) -> None:
        """Write (N, 4) entries into a new file, and go over to it; `bits` may become more."""
        old = self._header[AT_GENERATION]
        live = live[np.argsort(live[:, 0])]
        count = np.arange(len(live))
        while True:
            home = (live[:, 0] >> np.uint64(64 - bits)).astype(np.int64)
            place = np.maximum.accumulate(home - count) + count if len(live) else home
            if len(live) == 0 or place[-1] < (1 << bits) + OVERHANG // 2:
                break
            bits += 1
        path = path_of(self._directory, old + 1)
        path.unlink(missing_ok=True)  # of one who died here
        words = make_index(path, bits)
        np.frombuffer(words, np.uint64).reshape(-1, ENTRY_WORDS)[place] = live
        self._header[AT_GENERATION] = old + 1
        self._header[AT_TOMBS] = 0
        path_of(self._directory, old).unlink(missing_ok=True)
        self._map()


def path_of(directory: Path, generation: int) -> Path:
    return directory / f"index.{generation}"


def bits_for(sessions: int) -> int:
    """Homes, as a power of two, for so many sessions."""
    return max(LEAST_BITS, int(sessions / LOAD).bit_length())


def make_index(path: Path, bits: int) -> memoryview:
    """An empty one, all of whose blocks are there; its words."""
    fd = open_file(path)
    try:
        size = ((1 << bits) + OVERHANG) * ENTRY_BYTES
        grow(fd, 0, size)
        return map_file(fd, size).cast("Q")
    finally:
        os.close(fd)


def _bits_of(size: int) -> int:
    return (size // ENTRY_BYTES - OVERHANG).bit_length() - 1
