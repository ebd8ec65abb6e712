"""What must hold in the files of a disk store whenever nobody writes."""

from collections import Counter

import numpy as np

from service.session import LastReply, Record, SessionKey
from service.store.disk.layout import (
    AT_CLASSES,
    AT_DIRTY,
    AT_FIRST_DUE,
    AT_LIVE,
    AT_TENANTS,
    AT_TOMBS,
    CLASS_WORDS,
    CLASSES,
    DUE,
    EXTENT,
    FIRST_FREE,
    FREE,
    NEXT_FREE,
    SLOT_BYTES,
    TENANT_BITS,
    TENANT_MASK,
    TOMB,
    TOUCHED,
    WORD,
    class_of,
    slot_of,
)
from service.store.disk.store import DiskStore


def record_of(step: int, size: int, birth: int = 1) -> Record:
    """A record that no other step or size has."""
    state = bytes([step % 251, size % 251]) * (size // 2)
    return Record(birth, "m", "v", step, state, LastReply(step - 1, b"digest", b"y", step == 1))


def assert_sound(store: DiskStore) -> None:
    """Every count is exact, every slot is either one session's or free, every record whole."""
    directory = store._directory
    header, index = directory.header, directory.index
    index.refresh()
    assert header[AT_DIRTY] == 0
    live = index.entries[index.entries[:, WORD] > TOMB]
    assert header[AT_LIVE] == len(live)
    assert header[AT_TOMBS] == int((index.entries[:, WORD] == TOMB).sum())
    assert len(np.unique(live[:, :2], axis=0)) == len(live)
    due_ms = live[:, DUE] >> np.uint64(TENANT_BITS)
    assert not len(live) or header[AT_FIRST_DUE] <= int(due_ms.min())
    tenants = Counter((live[:, DUE] & np.uint64(TENANT_MASK)).tolist())
    counts = [directory.tenants.count(number) for number in range(header[AT_TENANTS])]
    assert counts == [tenants[number] for number in range(header[AT_TENANTS])]
    used: dict[int, set[int]] = {number: set() for number in range(CLASSES)}
    for word in live[:, WORD].tolist():
        assert directory.slots.read(word) is not None
        assert slot_of(word) not in used[class_of(word)]
        used[class_of(word)].add(slot_of(word))
    for number in range(CLASSES):
        row = AT_CLASSES + number * CLASS_WORDS
        free: set[int] = set()
        slot = header[row + FIRST_FREE]
        for _ in range(header[row + FREE]):
            words = directory.slots.file(number).words
            at = slot * SLOT_BYTES[number] // 8
            assert slot not in free and words[at] == 0
            free.add(slot)
            slot = words[at + NEXT_FREE]
        assert not free & used[number]
        assert free | used[number] == set(range(header[row + TOUCHED]))
        assert header[row + TOUCHED] <= header[row + EXTENT]


def key(session_id: str, tenant: str = "") -> SessionKey:
    return SessionKey(tenant, session_id)
