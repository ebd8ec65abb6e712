"""What must hold in the files of a disk store whenever nobody writes."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from service.session import LastReply, Record, SessionKey
from service.store import Commit, Outcome
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
from service.store.record_bytes import RecordRows

DIGEST = b"sixteen bytes..."


def record_of(step: int, size: int, birth: int = 1) -> Record:
    """A record that no other step or size has."""
    state = bytes([step % 251, size % 251]) * (size // 2)
    return Record(birth, "m", "v", step, state, LastReply(step - 1, DIGEST, b"y", step == 1))


async def commit_any_way(store: DiskStore, commits: Sequence[Commit]) -> list[Outcome]:
    """Those that can be as rows of the store's table, each size of state for itself."""
    outcomes: dict[int, Outcome] = {}
    for size in {len(commit.after.state) for commit in commits if commit.after is not None}:
        outcomes |= await _commit_rows(store, commits, size)
    others = [place for place in range(len(commits)) if place not in outcomes]
    done = await store.commit([commits[place] for place in others])
    outcomes |= dict(zip(others, done, strict=True))
    return [outcomes[place] for place in range(len(commits))]


async def _commit_rows(
    store: DiskStore, commits: Sequence[Commit], size: int
) -> dict[int, Outcome]:
    """What became of those whose states, before and after, are of so many bytes."""
    seated: list[tuple[int, int, Record, Record]] = []  # place, seat, before, after
    for place, commit in enumerate(commits):
        found, before, after = store.table.seat(commit.key), commit.before, commit.after
        if not (found and before and after and before.birth == after.birth):
            continue
        if len(before.state) == len(after.state) == size:
            seated.append((place, found[0], before, after))
    if not seated:
        return {}
    dtype = np.dtype([("all", f"V{size}")])
    records = RecordRows("m", "v", dtype, b"")
    look = await store.table.read(np.array([seat for _, seat, _, _ in seated], np.int64), records)
    rows = [seated[row] for row in look.rows.tolist()]
    done = await store.table.commit(
        look,
        np.array([before.step for _, _, before, _ in rows], np.int64) == look.steps,
        records,
        1,
        np.frombuffer(DIGEST * len(rows), "V16"),
        np.frombuffer(b"".join(after.state for _, _, _, after in rows), dtype),
        np.frombuffer(b"y" * len(rows), np.uint8).reshape(-1, 1),
    )
    return {
        place: Outcome.DONE if is_done else Outcome.LOST
        for (place, _, _, _), is_done in zip(rows, done.tolist(), strict=True)
    }


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
