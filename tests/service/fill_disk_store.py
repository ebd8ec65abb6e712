"""`python fill_disk_store.py DIRECTORY DURABILITY`: on a tmpfs of its own, until it is full.

Run where mounts are this process's own (`unshare --mount`).
"""

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

from service.store import Commit, Outcome
from service.store.disk.slots import FULL_S
from service.store.disk.store import DiskStore, Durability
from tests.service.disk_checks import assert_sound, key, record_of


async def fill(path: Path, durability: Durability) -> None:
    (path / "filler").write_bytes(bytes(5 << 20))
    store = DiskStore(path / "sessions", 100_000, 3600.0, durability)
    outcomes: Counter[Outcome] = Counter()
    keys = [key(str(number)) for number in range(20_000)]
    for start in range(0, len(keys), 100):
        some = keys[start : start + 100]
        outcomes.update(await store.commit([Commit(one, None, record_of(1, 1000)) for one in some]))
    assert set(outcomes) == {Outcome.DONE, Outcome.NO_SPACE}, outcomes
    live = outcomes[Outcome.DONE]
    assert await store.count() == live
    free = int(subprocess.check_output(["df", "--output=avail", "-B1", str(path)]).split()[1])
    assert free < 1 << 18, free
    # Live sessions go on, all of them, in batches larger than the number of free slots.
    for step in range(1, 4):
        for start in range(0, live, 100):
            some = keys[start : start + 100]
            commits = [
                Commit(one, record, record_of(step + 1, 1000))
                for one, record in zip(some, await store.get(some), strict=True)
                if record is not None
            ]
            assert set(await store.commit(commits)) == {Outcome.DONE}
    (first,) = await store.get(keys[:1])
    assert await store.commit([Commit(keys[0], first, record_of(5, 1_000_000))]) == [
        Outcome.NO_SPACE
    ]
    assert await store.get(keys[:1]) == [first]
    # One that is dropped makes room for another.
    assert await store.commit([Commit(key("new"), None, record_of(1, 1000))]) == [Outcome.NO_SPACE]
    assert await store.commit([Commit(keys[0], first, None)]) == [Outcome.DONE]
    assert await store.commit([Commit(key("new"), None, record_of(1, 1000))]) == [Outcome.DONE]
    assert_sound(store)
    # And so does the disk, when there is room on it again.
    (path / "filler").unlink()
    await asyncio.sleep(FULL_S)
    assert await store.commit([Commit(keys[0], None, record_of(1, 1000))]) == [Outcome.DONE]
    await store.close()
    again = DiskStore(path / "sessions", 100_000, 3600.0, durability)
    assert await again.count() == live + 1
    assert_sound(again)


def main(path: Path, durability: Durability) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)], check=True)
    asyncio.run(fill(path, durability))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])  # type: ignore[arg-type]
