"""`python hammer_disk_store.py DIRECTORY DURABILITY COUNT SEED`: one of several writers.

Advances sessions that others advance too, by compare and set, and drops some of them. Prints one
line for each of its commits that was acknowledged: the session, its birth, and the step.
"""

import asyncio
import random
import sys
from pathlib import Path

from service.store import Commit, Outcome
from service.store.disk import index as index_module
from service.store.disk.store import DiskStore, Durability
from tests.service.disk_checks import commit_any_way, key, record_of

SESSIONS = 6
BATCH = 3


async def hammer(store: DiskStore, count: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        keys = [key(str(number)) for number in rng.sample(range(SESSIONS), BATCH)]
        commits = []
        for one, record in zip(keys, await store.get(keys), strict=True):
            birth = rng.getrandbits(62) if record is None else record.birth
            step = 0 if record is None else record.step
            after = record_of(step + 1, rng.choice((100, 100, 3000)), birth)
            is_drop = record is not None and rng.random() < 0.02
            commits.append(Commit(one, record, None if is_drop else after))
        way = commit_any_way if rng.random() < 0.7 else DiskStore.commit
        outcomes = await way(store, commits)
        for commit, outcome in zip(commits, outcomes, strict=True):
            if outcome is Outcome.DONE and commit.after is not None:
                name = commit.key.session_id
                sys.stdout.write(f"{name} {commit.after.birth} {commit.after.step}\n")
        sys.stdout.flush()


def main(path: Path, durability: Durability, count: int, seed: int) -> None:
    index_module.CROWDED = 3e-3  # the index is written anew now and then
    asyncio.run(hammer(DiskStore(path, 100, 3600.0, durability), count, seed))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))  # type: ignore[arg-type]
