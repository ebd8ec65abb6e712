"""Durability `power` when the power is cut: what was acknowledged is there, and nothing older.

A disk that keeps of a file what it had at the file's last sync, and of all that was written since
any pages of 4 KiB, each whole: any may have been written back before the cut.
"""

import asyncio
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.session import Record, SessionKey
from service.store import Commit, Outcome
from service.store.disk import directory, slots
from service.store.disk.machine import Machine
from service.store.disk.store import DiskStore
from tests.service.disk_checks import assert_sound, key, record_of

PAGE = 4096
SHARED = Path("/dev/shm")  # where a real sync costs nothing
KEYS = [key(str(number)) for number in range(4)]
SIZES = (40, 1000, 6000)

# For each key of a batch: drop it (None), or how large its next record is.
batches = st.lists(
    st.dictionaries(st.sampled_from(KEYS), st.none() | st.sampled_from(SIZES), min_size=1),
    min_size=1,
    max_size=12,
)


class PowerCut(BaseException):
    """The machine stops here."""


class Disk:
    """What the disk has of a directory's files."""

    def __init__(self, path: Path, syncs: int | None) -> None:
        self.path = path
        self.syncs_left = syncs  # None: until it is told
        self.synced: dict[str, bytes] = {}

    def sync(self, fd: int) -> None:
        """In place of fdatasync; a cut comes before it has done anything."""
        if self.syncs_left is not None:
            if self.syncs_left == 0:
                raise PowerCut
            self.syncs_left -= 1
        file = Path(f"/proc/self/fd/{fd}").resolve()
        self.synced[file.name] = file.read_bytes()

    def cut(self, to: Path, rng: random.Random) -> None:
        """Leave in `to` what another boot finds."""
        to.mkdir()
        kept = rng.choice((0.0, 0.3, 1.0))
        for file in self.path.iterdir():
            now, before = file.read_bytes(), self.synced.get(file.name, b"")
            before = before.ljust(len(now), b"\0")
            pages = [
                (now if rng.random() < kept else before)[at : at + PAGE]
                for at in range(0, len(now), PAGE)
            ]
            (to / file.name).write_bytes(b"".join(pages))


@contextmanager
def disk_under(path: Path, syncs: int | None) -> Iterator[Disk]:
    disk = Disk(path, syncs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "sync", disk.sync)
        patch.setattr(directory, "sync", disk.sync)
        patch.setattr(slots, "GROW_BYTES", 2 * PAGE)
        yield disk


def open_store(path: Path, boot: int) -> DiskStore:
    return DiskStore(path, 100, 1e6, "power", Machine(boot, lambda: 1000.0, lambda: 1e9))


State = dict[SessionKey, Record | None]


async def run(store: DiskStore, history: list[dict[SessionKey, int | None]]) -> tuple[State, State]:
    """What was acknowledged, and what was under way at the cut."""
    state: State = dict.fromkeys(KEYS)
    for number, batch in enumerate(history, start=1):
        after: State = {
            one: None if size is None else record_of(number, size, birth=number)
            for one, size in batch.items()
        }
        commits = [Commit(one, state[one], record) for one, record in after.items()]
        try:
            outcomes = await store.commit(commits)
        except PowerCut:
            return state, {**state, **after}
        assert set(outcomes) == {Outcome.DONE}
        state |= after
    return state, state


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(history=batches, syncs=st.none() | st.integers(2, 14), seed=st.integers(0, 1 << 30))
def test_a_power_cut_loses_nothing_that_was_acknowledged(
    history: list[dict[SessionKey, int | None]], syncs: int | None, seed: int
) -> None:
    """Each session is as its last acknowledged commit, or the one under way, left it."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=SHARED if SHARED.is_dir() else None) as root:
        path = Path(root) / "0"
        with disk_under(path, None) as disk:
            store = open_store(path, boot=1)
            disk.synced |= {"header": (path / "header").read_bytes()}
            disk.syncs_left = syncs
            acknowledged, under_way = asyncio.run(run(store, history))
            disk.cut(Path(root) / "1", rng)
        after = open_store(Path(root) / "1", boot=2)
        assert_sound(after)
        found = dict(zip(KEYS, asyncio.run(after.get(KEYS)), strict=True))
        for one, record in found.items():
            assert record in (acknowledged[one], under_way[one]), one
        # It goes on, and a second cut is no worse.
        last = [Commit(one, record, record_of(99, 700)) for one, record in found.items()]
        assert set(asyncio.run(after.commit(last))) == {Outcome.DONE}
        again = open_store(Path(root) / "1", boot=3)
        assert asyncio.run(again.get(KEYS)) == [record_of(99, 700)] * len(KEYS)
