"""Slots of records: files of slots of one size each, mapped whole; see `layout`.

Writing is for whoever holds the store's lock.
"""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.lib.stride_tricks import as_strided

from service.errors import InternalError, StoreFullError
from service.session import SessionKey
from service.store.disk.layout import (
    AT_CLASSES,
    BODY_AT,
    CLASS_WORDS,
    CLASSES,
    EXTENT,
    FIRST_FREE,
    FREE,
    MAX_SLOTS,
    NEXT_FREE,
    SLOT_BYTES,
    SLOT_HEAD,
    SLOT_SUM,
    SUM_AT,
    TOUCHED,
    UNSYNCED,
    class_of,
    is_of,
    slot_of,
)
from service.store.disk.mapping import grow, map_file, open_file, sync, sync_directory

Array = np.ndarray

GROW_BYTES = 4 << 20  # 4 MiB: under a millisecond to allocate, and 3,000 sessions of 1 KiB
MAP_BYTES = 64 << 30  # 64 GiB of addresses for each size: 50 million sessions of 1 KiB
MAP_SLOTS = 64  # at least, of the largest
FULL_S = 1.0  # after which a full disk is asked again: that takes milliseconds
KEPT = 1  # free slots that no new session takes on a full disk: a commit needs one

logger = logging.getLogger("carousel.store")


@dataclass(slots=True)
class Content:
    """What a slot holds; its checksum was right."""

    sequence: int
    expires_ms: int
    tenant: bytes
    session_id: bytes
    record: bytes

    @property
    def key(self) -> SessionKey:
        return SessionKey(as_text(self.tenant), as_text(self.session_id))


def as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def as_text(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")


def pack_slot(
    sequence: int, expires_ms: int, tenant: bytes, session_id: bytes, record: bytes
) -> bytes:
    head = SLOT_HEAD.pack(sequence, expires_ms, len(record), len(tenant), len(session_id))
    total = crc32(record, crc32(session_id, crc32(tenant, crc32(head))))
    return b"".join((head, SLOT_SUM.pack(total), tenant, session_id, record))


class SlotFile:
    """The slots of one size."""

    def __init__(self, directory: Path, number: int) -> None:
        self.size = SLOT_BYTES[number]
        path = directory / f"slots.{self.size}"
        is_new = not path.exists()
        self.fd = open_file(path)
        if is_new:
            sync_directory(directory)
        self.capacity = min(max(MAP_BYTES // self.size, MAP_SLOTS), MAX_SLOTS)
        self.bytes = map_file(self.fd, self.capacity * self.size)
        self.words = self.bytes.cast("Q")
        self.flat: Array = np.frombuffer(self.bytes, np.uint64)
        self.halves: Array = np.frombuffer(self.bytes, np.uint32)
        self._windows: dict[int, Array] = {}

    def at(self, slot: int) -> int:
        """The place of a slot's first word in `words`."""
        return slot * self.size >> 3

    def window(self, size: int) -> Array:
        """(every byte's place, size) uint8: what begins there.

        Only what has disk blocks may be touched, and only within one slot.
        """
        found = self._windows.get(size)
        if found is None:
            whole = np.frombuffer(self.bytes, np.uint8)
            found = as_strided(whole, (len(whole) - size + 1, size), (1, 1))
            if len(self._windows) > 256:
                self._windows.clear()
            self._windows[size] = found
        return found

    @property
    def stored_bytes(self) -> int:
        """Of the file, as the disk has it."""
        return os.fstat(self.fd).st_size

    def read(self, slot: int) -> Content | None:
        """What the slot holds; None if its checksum is wrong."""
        at = slot * self.size
        found = SLOT_HEAD.unpack_from(self.bytes, at)
        sequence, expires_ms, record, tenant, session_id = found
        keyed = BODY_AT + tenant + session_id
        if sequence == 0 or keyed + record > self.size:
            return None
        whole = self.bytes[at : at + keyed + record].tobytes()
        (total,) = SLOT_SUM.unpack_from(whole, SUM_AT)
        # The head is taken from the copy, which is what the checksum was made of.
        if SLOT_HEAD.unpack_from(whole) != found:
            return None
        if crc32(memoryview(whole)[BODY_AT:], crc32(whole[:SUM_AT])) != total:
            return None
        split = BODY_AT + tenant
        return Content(
            sequence, expires_ms, whole[BODY_AT:split], whole[split:keyed], whole[keyed:]
        )


class Slots:
    """All of them."""

    def __init__(self, directory: Path, header: memoryview) -> None:
        self._directory = directory
        self._header = header
        self._files: dict[int, SlotFile] = {}
        self._linked: dict[int, Array] = {}  # by class: the slots last freed here, as listed
        self._full_until_s: dict[int, float] = {}  # by class
        rows = np.frombuffer(header, np.uint64)[AT_CLASSES : AT_CLASSES + CLASSES * CLASS_WORDS]
        self.table: Array = rows.reshape(CLASSES, CLASS_WORDS)  # the header's rows of classes

    def file(self, number: int) -> SlotFile:
        """The slots of a class; opened when they are first asked for."""
        found = self._files.get(number)
        if found is None:
            found = self._files[number] = SlotFile(self._directory, number)
        return found

    def stored(self) -> Iterator[int]:
        """The classes that have a file."""
        for number, size in enumerate(SLOT_BYTES):
            if (self._directory / f"slots.{size}").exists():
                yield number

    def read(self, word: int) -> Content | None:
        """What the slot of an index word holds; None if it is another, or its checksum is wrong."""
        number, slot = class_of(word), slot_of(word)
        if number >= CLASSES or slot >= self._header[AT_CLASSES + number * CLASS_WORDS + TOUCHED]:
            return None
        content = self.file(number).read(slot)
        return content if content is not None and is_of(word, content.sequence) else None

    def take(self, number: int, is_new: bool) -> tuple[int, int]:
        """A free slot: its class, which may be a larger one on a full disk, and its number.

        Raises:
            StoreFullError: there is none, or, for a new session, none but those kept for commits.
        """
        if self._free_of(number) > KEPT:
            return number, self._pop(number)
        try:
            self._grow(number)
        except StoreFullError:
            for other in range(number, CLASSES):
                if self._free_of(other) > (KEPT if is_new else 0):
                    return other, self._pop(other)
            raise
        return number, self._pop(number)

    def write(self, number: int, slot: int, content: bytes) -> None:
        """Fill a slot that was taken; nobody reads it before its word is published."""
        file = self.file(number)
        at = slot * file.size
        self._header[AT_CLASSES + number * CLASS_WORDS + UNSYNCED] = 1
        file.bytes[at : at + len(content)] = content

    def free(self, word: int) -> None:
        """Give back the slot of a word that is not published any more."""
        number, slot = class_of(word), slot_of(word)
        self.link(number, [slot])

    def link(self, number: int, slots: list[int]) -> None:
        """Put slots on the list of free ones."""
        header, row = self._header, AT_CLASSES + number * CLASS_WORDS
        file = self.file(number)
        header[row + UNSYNCED] = 1
        for slot in slots:
            at = file.at(slot)
            file.words[at + NEXT_FREE] = header[row + FIRST_FREE]
            file.words[at] = 0
            header[row + FIRST_FREE] = slot
            header[row + FREE] += 1

    def sync(self) -> None:
        """Return once all that was written to slots is on the disk, by whomever it was."""
        for number in np.flatnonzero(self.table[:, UNSYNCED]).tolist():
            sync(self.file(number).fd)
            self._header[AT_CLASSES + number * CLASS_WORDS + UNSYNCED] = 0

    def remove(self, number: int) -> None:
        """Delete a class's file; nobody else has it open."""
        if number in self._files:
            os.close(self._files.pop(number).fd)
        (self._directory / f"slots.{SLOT_BYTES[number]}").unlink()

    def close(self) -> None:
        for file in self._files.values():
            os.close(file.fd)
        self._files.clear()

    def take_many(self, number: int, count: int) -> Array | None:
        """(count,) int64: free slots of this very class for sessions that live.

        None: there are not so many.
        """
        header, row = self._header, AT_CLASSES + number * CLASS_WORDS
        while self._free_of(number) < count + KEPT:
            try:
                self._grow(number)
            except StoreFullError:
                return None
        if (linked := self._take_linked(number, count)) is not None:
            return linked
        words, slots = self.file(number).words, list[int]()
        size, touched = self.file(number).size >> 3, header[row + TOUCHED]
        slot = header[row + FIRST_FREE]
        for _ in range(min(count, header[row + FREE])):
            at = slot * size
            if slot >= touched or words[at] != 0:
                raise InternalError(f"the list of free slots of {size << 3} bytes is broken")
            slots.append(slot)
            slot = words[at + NEXT_FREE]
        header[row + FIRST_FREE] = slot
        header[row + FREE] -= len(slots)
        fresh = count - len(slots)
        header[row + TOUCHED] = touched + fresh
        return np.array([*slots, *range(touched, touched + fresh)], np.int64)

    def _take_linked(self, number: int, count: int) -> Array | None:
        """Those that this process linked last, where they are still the first of the list."""
        header, row = self._header, AT_CLASSES + number * CLASS_WORDS
        slots = self._linked.get(number)
        if slots is None or len(slots) < count or header[row + FIRST_FREE] != slots[0]:
            return None
        taken, file = slots[:count], self.file(number)
        at = taken * (file.size >> 3)
        after = file.flat[at + NEXT_FREE]
        if header[row + FREE] < count or (after[:-1] != taken[1:]).any() or file.flat[at].any():
            return None
        header[row + FIRST_FREE] = int(after[-1])
        header[row + FREE] -= count
        return taken

    def mark(self, number: int) -> None:
        """Slots of this class were written to."""
        self._header[AT_CLASSES + number * CLASS_WORDS + UNSYNCED] = 1

    def link_many(self, number: int, slots: Array) -> None:
        """As `link`, of (N,) slots."""
        header, row = self._header, AT_CLASSES + number * CLASS_WORDS
        header[row + UNSYNCED] = 1
        file = self.file(number)
        after = np.empty(len(slots), np.uint64)
        after[0], after[1:] = header[row + FIRST_FREE], slots[:-1]
        at = slots * (file.size >> 3)
        file.flat[at + NEXT_FREE] = after
        file.flat[at] = 0
        header[row + FIRST_FREE] = int(slots[-1])
        header[row + FREE] += len(slots)
        self._linked[number] = slots[::-1]

    def _free_of(self, number: int) -> int:
        header, row = self._header, AT_CLASSES + number * CLASS_WORDS
        return header[row + FREE] + header[row + EXTENT] - header[row + TOUCHED]

    def _pop(self, number: int) -> int:
        header, row = self._header, AT_CLASSES + number * CLASS_WORDS
        if header[row + FREE] == 0:
            slot = header[row + TOUCHED]
            header[row + TOUCHED] = slot + 1
            return slot
        slot = header[row + FIRST_FREE]
        file = self.file(number)
        at = file.at(slot)
        if slot >= header[row + TOUCHED] or file.words[at] != 0:
            raise InternalError(f"the list of free slots of {file.size} bytes is broken")
        header[row + FIRST_FREE] = file.words[at + NEXT_FREE]
        header[row + FREE] -= 1
        return slot

    def _grow(self, number: int) -> None:
        file = self.file(number)
        row = AT_CLASSES + number * CLASS_WORDS
        extent = self._header[row + EXTENT]
        more = min(max(GROW_BYTES // file.size, 1), file.capacity - extent)
        if more <= 0:
            raise StoreFullError(f"all {extent} slots of {file.size} bytes that can be are in use")
        now_s = time.monotonic()
        if now_s < self._full_until_s.get(number, 0.0):
            raise StoreFullError(f"the disk had no room for slots of {file.size} bytes just now")
        try:
            try:
                grow(file.fd, extent * file.size, more * file.size)
            except StoreFullError:
                more = max(more // 16, 1)
                grow(file.fd, extent * file.size, more * file.size)
        except StoreFullError as error:
            self._full_until_s[number] = now_s + FULL_S
            logger.error("no room for sessions of %d bytes: %s", file.size, error.message)
            raise
        self._header[row + EXTENT] = extent + more
