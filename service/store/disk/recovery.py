"""What is done after a writer died, and after the machine did."""

from hashlib import blake2b

import numpy as np

from service.store.disk.index import Index, bits_for
from service.store.disk.layout import (
    AT_CLASSES,
    AT_DIRTY,
    AT_FIRST_DUE,
    AT_LIVE,
    AT_SALT_HIGH,
    AT_SALT_LOW,
    AT_SEQUENCE,
    AT_TOMBS,
    CLASS_WORDS,
    DUE,
    ENTRY_WORDS,
    EXTENT,
    FIRST_FREE,
    FREE,
    NEVER_MS,
    TENANT_BITS,
    TENANT_MASK,
    TOMB,
    TOUCHED,
    UNSYNCED,
    WORD,
    classes_and_slots,
    pack_word,
)
from service.store.disk.slots import Slots, as_text
from service.store.disk.tenants import Tenants

Array = np.ndarray

_TOUCH_SLOTS = 1 << 14  # looked at together


def repair(header: memoryview, index: Index, slots: Slots, tenants: Tenants) -> None:
    """Count again, and list the free slots again, by the index; nothing else can be wrong."""
    index.refresh()
    words = index.entries[:, WORD]
    live = index.entries[words > TOMB]
    header[AT_LIVE] = len(live)
    header[AT_TOMBS] = int(np.count_nonzero(words == TOMB))
    due = live[:, DUE]
    header[AT_FIRST_DUE] = int(due.min() >> np.uint64(TENANT_BITS)) if len(live) else NEVER_MS
    tenants.count_again((due & np.uint64(TENANT_MASK)).astype(np.int64))
    classes, numbers = classes_and_slots(live[:, WORD])
    touched = slots.table[:, TOUCHED]
    for number in np.flatnonzero(touched).tolist():
        is_free = np.ones(int(touched[number]), bool)
        is_free[numbers[classes == number]] = False
        _link(header, slots, number, np.flatnonzero(is_free))
    header[AT_DIRTY] = 0


def _link(header: memoryview, slots: Slots, number: int, free: Array) -> None:
    """Make a list of these free slots, none of which has a sequence number any more."""
    row = AT_CLASSES + number * CLASS_WORDS
    header[row + UNSYNCED] = 1
    file = slots.file(number)
    after = np.append(free[1:], 0)
    for start in range(0, len(free), _TOUCH_SLOTS):
        some = slice(start, start + _TOUCH_SLOTS)
        base = int(free[start])
        end = int(free[some][-1]) + 1
        whole = np.frombuffer(file.bytes[base * file.size : end * file.size], np.uint64)
        table = whole.reshape(-1, file.size // 8)
        table[free[some] - base, 1] = after[some]
        table[free[some] - base, 0] = 0
    header[row + FIRST_FREE] = int(free[0]) if len(free) else 0
    header[row + FREE] = len(free)


def rebuild(header: memoryview, index: Index, slots: Slots, tenants: Tenants) -> int:
    """Make the index anew from the slots alone: of each session the newest that is whole.

    Returns:
        How many sessions there are. The free slots are still to be listed, by `repair`.
    """
    salt = header[AT_SALT_HIGH].to_bytes(8, "little") + header[AT_SALT_LOW].to_bytes(8, "little")
    newest: dict[tuple[int, int], tuple[int, int, int]] = {}  # hash -> sequence, word, due
    highest = header[AT_SEQUENCE]
    for number in list(slots.stored()):
        file = slots.file(number)
        count = min(file.stored_bytes // file.size, file.capacity)
        row = AT_CLASSES + number * CLASS_WORDS
        header[row + EXTENT] = header[row + TOUCHED] = count
        for slot in range(count):
            if file.words[file.at(slot)] == 0 or (content := file.read(slot)) is None:
                continue
            high, low = hash_of(salt, content.tenant, content.session_id)
            highest = max(highest, content.sequence)
            held = newest.get((high, low))
            if held is None or held[0] < content.sequence:
                due = content.expires_ms << TENANT_BITS | tenants.number(as_text(content.tenant))
                word = pack_word(number, slot, content.sequence)
                newest[high, low] = content.sequence, word, due
    header[AT_SEQUENCE] = highest
    live = np.empty((len(newest), ENTRY_WORDS), np.uint64)
    for entry, ((high, low), (_, word, due)) in zip(live, newest.items(), strict=True):
        entry[:] = high, low, word, due
    index.replace(live, bits_for(len(newest)))
    return len(newest)


def hash_of(salt: bytes, tenant: bytes, session_id: bytes) -> tuple[int, int]:
    """Two 64-bit words that tell one session key from another."""
    mark = len(tenant).to_bytes(2, "little")
    digest = blake2b(mark + tenant + session_id, digest_size=16, key=salt).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
