"""Where everything is in the files of a store: format 1, of records of format 2 and before.

`header`: 64-bit words in the machine's byte order, one of them for each name below, then `CLASSES`
rows of `CLASS_WORDS`.

`index.N`, N the generation: entries of four words. The first two are the hash of the key, by whose
highest bits an entry has its home; it lies there or in the next place that was free. Then the word
that says which slot (`pack_word`), and due: when the session expires, and whose it is.

`slots.SIZE`: slots of one size. A slot: `SLOT_HEAD`, the checksum of all but itself, tenant and
session id in UTF-8, the record. A free slot has sequence number 0, and the next free one in its
second word.

`tenants`: rows of four words: the hash of the name, how many sessions it has.
"""

import struct
from bisect import bisect_left

import numpy as np

from service.store.record_bytes import FORMAT as RECORD_FORMAT

Array = np.ndarray

MAGIC = int.from_bytes(b"carousel", "little")
FORMAT = 1 << 8 | RECORD_FORMAT
OLD_FORMATS = (1 << 8 | 1,)  # the same files, whose records are read by this Carousel too

# The header's words.
HEADER_BYTES = 16_384
(
    AT_MAGIC,
    AT_FORMAT,
    AT_BOOT_HIGH,  # the boot in which it was last opened
    AT_BOOT_LOW,
    AT_SALT_HIGH,  # random: nobody chooses ids that share a home
    AT_SALT_LOW,
    AT_DIRTY,  # 1 while someone writes, or died writing
    AT_CLEAN,  # 1: nobody has it open, and all of it is on the disk
    AT_POWER,  # 1: every commit since it was last clean was on the disk before it was published
    AT_GENERATION,  # of the index
    AT_LIVE,  # entries in use
    AT_TOMBS,  # entries whose session is gone
    AT_SEQUENCE,  # the last one given out
    AT_FIRST_DUE,  # ms: no session expires before
    AT_TIMEOUT,  # ms: the shortest idle timeout of those who have it open
    AT_OFFSET,  # ms: the store's time less the machine's since boot
    AT_SEEN,  # ms: the store's time when it was last written
    AT_TENANTS,  # rows in use
    AT_TENANTS_EXTENT,  # rows that have disk blocks
) = range(19)
AT_CLASSES = 64
CLASS_WORDS = 8
EXTENT, TOUCHED, FREE, FIRST_FREE, UNSYNCED = range(5)  # of a class: how many slots have disk
# blocks, how many were ever used, how many of these are free; the first free; not on the disk yet

# Sizes of slots: from 64 bytes, then eight to an octave, so at most an eighth is wasted.
CLASSES = 8 + 8 * 25


def _slot_bytes(number: int) -> int:
    if number < 8:
        return 64 * (number + 1)
    octave, step = divmod(number - 8, 8)
    return 64 * (9 + step) << octave


SLOT_BYTES = tuple(_slot_bytes(number) for number in range(CLASSES))  # the last: 32 GiB


def class_for(size: int) -> int:
    """The number of the smallest class whose slots hold `size` bytes."""
    return bisect_left(SLOT_BYTES, size)


# A slot.
SLOT_HEAD = struct.Struct("=QQIHH")  # sequence, expires (ms), bytes of record, tenant, session id
SLOT_SUM = struct.Struct("=Ixxxx")
SUM_AT = SLOT_HEAD.size
BODY_AT = SUM_AT + SLOT_SUM.size
NEXT_FREE = 1  # the word of a free slot that says which is next

# An entry of the index.
ENTRY_WORDS = 4
WORD, DUE = 2, 3
EMPTY, TOMB = 0, 1  # words that say no slot
TENANT_BITS = 20
NEVER_MS = (1 << 64 - TENANT_BITS) - 1
MAX_TENANTS = 1 << TENANT_BITS
TENANT_MASK = MAX_TENANTS - 1
_USED = 1 << 63
_CLASS_SHIFT, _SLOT_SHIFT = 55, 24
MAX_SLOTS = 1 << (_CLASS_SHIFT - _SLOT_SHIFT)  # of one class
_TAG_MASK = (1 << _SLOT_SHIFT) - 1  # the lowest bits of the slot's sequence number


def pack_word(number: int, slot: int, sequence: int) -> int:
    return _USED | number << _CLASS_SHIFT | slot << _SLOT_SHIFT | sequence & _TAG_MASK


def class_of(word: int) -> int:
    return word >> _CLASS_SHIFT & 0xFF


def slot_of(word: int) -> int:
    return word >> _SLOT_SHIFT & MAX_SLOTS - 1


def classes_and_slots(words: Array) -> tuple[Array, Array]:
    """Both of many words (N,) uint64, as int64."""
    classes = words >> np.uint64(_CLASS_SHIFT) & np.uint64(0xFF)
    slots = words >> np.uint64(_SLOT_SHIFT) & np.uint64(MAX_SLOTS - 1)
    return classes.astype(np.int64), slots.astype(np.int64)


def slots_of(words: Array) -> Array:
    """`slot_of` of many (N,) uint64, as int64."""
    return (words >> np.uint64(_SLOT_SHIFT) & np.uint64(MAX_SLOTS - 1)).astype(np.int64)


def pack_words(number: int, slots: Array, sequences: Array) -> Array:
    """`pack_word` of (N,) slots of one class, int64, and sequence numbers, uint64."""
    base = np.uint64(_USED | number << _CLASS_SHIFT)
    tags = sequences & np.uint64(_TAG_MASK)
    return np.asarray(base | slots.astype(np.uint64) << np.uint64(_SLOT_SHIFT) | tags)


def is_of(word: int, sequence: int) -> bool:
    """Whether a slot of this sequence number may be what the word means."""
    return (word ^ sequence) & _TAG_MASK == 0 and sequence != 0
