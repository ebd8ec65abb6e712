"""How many sessions each tenant has, shared by all processes; see `layout`.

Tenants have numbers, which stand in the index's entries; a tenant that has no sessions any more
keeps its number and its 32 bytes.
"""

import os
from hashlib import blake2b
from pathlib import Path

import numpy as np

from service.errors import StoreFullError
from service.store.disk.layout import AT_TENANTS, AT_TENANTS_EXTENT, MAX_TENANTS
from service.store.disk.mapping import grow, map_file, open_file
from service.store.disk.slots import as_bytes

Array = np.ndarray

_ROW_WORDS = 4
_COUNT = 2
_GROW_ROWS = 128  # a page


class Tenants:
    """The rows of all tenants."""

    def __init__(self, directory: Path, header: memoryview) -> None:
        self._header = header
        self._fd = open_file(directory / "tenants")
        self._words = map_file(self._fd, MAX_TENANTS * _ROW_WORDS * 8).cast("Q")
        self._numbers: dict[tuple[int, int], int] = {}  # hash -> number, of the rows read so far

    def find(self, tenant: str) -> int | None:
        """A tenant's number; None: it never had a session."""
        name = _hash_of(tenant)
        number = self._numbers.get(name)
        return number if number is not None else self._read_on().get(name)

    def number(self, tenant: str) -> int:
        """A tenant's number, given now if it has none; for the holder of the lock.

        Raises:
            StoreFullError: there are too many, or the disk is full.
        """
        found = self.find(tenant)
        if found is not None:
            return found
        header = self._header
        number = header[AT_TENANTS]
        if number == MAX_TENANTS:
            raise StoreFullError(f"the disk store knows {MAX_TENANTS} tenants and takes no more")
        if number == header[AT_TENANTS_EXTENT]:
            row_bytes = _ROW_WORDS * 8
            grow(self._fd, number * row_bytes, _GROW_ROWS * row_bytes)
            header[AT_TENANTS_EXTENT] = number + _GROW_ROWS
        at = number * _ROW_WORDS
        self._words[at], self._words[at + 1] = _hash_of(tenant)
        self._words[at + _COUNT] = 0
        header[AT_TENANTS] = number + 1
        self._read_on()
        return number

    def count(self, number: int) -> int:
        return self._words[number * _ROW_WORDS + _COUNT]

    def add(self, number: int, more: int) -> None:
        self._words[number * _ROW_WORDS + _COUNT] += more

    def count_again(self, numbers: Array) -> None:
        """By the tenant's number of every live session (N,)."""
        known = self._header[AT_TENANTS]
        if known:
            rows = np.frombuffer(self._words[: known * _ROW_WORDS], np.uint64)
            counts = np.bincount(numbers, minlength=known)
            rows.reshape(-1, _ROW_WORDS)[:, _COUNT] = counts

    def close(self) -> None:
        os.close(self._fd)

    def _read_on(self) -> dict[tuple[int, int], int]:
        for number in range(len(self._numbers), self._header[AT_TENANTS]):
            at = number * _ROW_WORDS
            self._numbers[self._words[at], self._words[at + 1]] = number
        return self._numbers


def _hash_of(tenant: str) -> tuple[int, int]:
    whole = int.from_bytes(blake2b(as_bytes(tenant), digest_size=16).digest(), "little")
    return whole >> 64, whole & (1 << 64) - 1
