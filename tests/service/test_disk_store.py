"""The embedded store: the contract, and what is its own."""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest
from msgspec.structs import replace

from service.errors import SettingsError, StoreUnavailableError
from service.session import Record, SessionKey
from service.store import Commit, Outcome, Store
from service.store.disk import index, sessions
from service.store.disk.layout import (
    AT_FIRST_DUE,
    AT_FORMAT,
    AT_GENERATION,
    AT_LIVE,
    BODY_AT,
    SLOT_HEAD,
)
from service.store.disk.machine import Machine
from service.store.disk.store import DiskStore, Durability
from tests.service.disk_checks import assert_sound, record_of
from tests.service.test_store import (
    IDLE_TIMEOUT_S,
    MAX_SESSIONS,
    A,
    B,
    Clock,
    StoreContract,
    key,
    record,
)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory in memory, where a sync costs nothing."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as path:
        yield Path(path)


@pytest.fixture(params=get_args(Durability))
def durability(request: pytest.FixtureRequest) -> Durability:
    chosen: Durability = request.param
    return chosen


class TestDiskStore(StoreContract):
    """Sessions in mapped files."""

    @pytest.fixture
    def make(self, clock: Clock, tmp_path: Path, durability: Durability) -> Callable[[], Store]:
        machine = Machine(1, clock, lambda: 1e9)
        return lambda: DiskStore(tmp_path, MAX_SESSIONS, IDLE_TIMEOUT_S, durability, machine)


HERE = Path(__file__).parent


def machine(now: float = 1000.0, boot: int = 1) -> Machine:
    return Machine(boot, Clock(now), lambda: 1e9)


def reopen(path: Path, durability: Durability = "process", boot: int = 1) -> DiskStore:
    return DiskStore(path, 100, 3600.0, durability, machine(boot=boot))


def commit(store: Store, *commits: Commit) -> list[Outcome]:
    return asyncio.run(store.commit(commits))


def get(store: Store, *keys: SessionKey) -> list[Record | None]:
    return asyncio.run(store.get(keys))


def run_script(
    script: str, *arguments: object, prefix: Sequence[str] = ()
) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, str(HERE / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


class TestLife:
    """What is there when it is opened again."""

    def test_sessions_outlive_the_process(self, tmp_path: Path, durability: Durability) -> None:
        """Whether it closed the store or not, and others have it open at once."""
        first = reopen(tmp_path, durability)
        commit(first, Commit(A, None, record(1)))
        second = reopen(tmp_path, durability)
        assert get(second, A) == [record(1)]
        commit(second, Commit(A, record(1), record(2)))
        assert get(first, A) == [record(2)]
        assert commit(first, Commit(A, record(1), record(3))) == [Outcome.LOST]
        assert asyncio.run(first.count()) == 1

    def test_after_a_clean_close_a_reboot_loses_nothing(
        self, tmp_path: Path, durability: Durability
    ) -> None:
        """The last of all who have it open leaves all of it on the disk."""
        stores = [reopen(tmp_path, durability) for _ in range(2)]
        commit(stores[0], Commit(A, None, record(1)), Commit(B, None, record_of(1, 50_000)))
        for store in stores:
            asyncio.run(store.close())
        after = reopen(tmp_path, durability, boot=2)
        assert get(after, A, B) == [record(1), record_of(1, 50_000)]
        assert_sound(after)

    def test_a_reboot_without_a_close_never_shows_an_older_state(
        self, tmp_path: Path, durability: Durability, caplog: pytest.LogCaptureFixture
    ) -> None:
        """`power` has the newest; `process` cannot know it, has none, and says so."""
        commit(reopen(tmp_path, durability), Commit(A, None, record(1)))
        after = reopen(tmp_path, durability, boot=2)
        assert get(after, A) == [record(1) if durability == "power" else None]
        said = "were found on the disk" if durability == "power" else "about 1 are gone"
        assert said in caplog.text
        assert_sound(after)
        before = get(after, A)[0]
        assert commit(after, Commit(A, before, record(2))) == [Outcome.DONE]
        assert get(reopen(tmp_path, durability, boot=2), A) == [record(2)]

    def test_setting_the_clock_changes_nothing_and_a_reboot_does_not_turn_it_back(
        self, tmp_path: Path
    ) -> None:
        """Neither back nor forward; time since boot counts."""
        wall, since_boot = Clock(1e9), Clock(1000.0)
        store = DiskStore(tmp_path, 10, 10.0, machine=Machine(1, since_boot, wall))
        commit(store, Commit(A, None, record(1)))
        for wall.now in (0.0, 2e9):
            assert get(store, A) == [record(1)]
            assert asyncio.run(store.sweep()) == []
        since_boot.now += 9
        commit(store, Commit(B, None, record(1)))
        asyncio.run(store.close())
        wall.now = 5.0  # a machine without a battery
        store = DiskStore(tmp_path, 10, 10.0, machine=Machine(2, since_boot, wall))
        assert get(store, A, B) == [record(1), record(1)]
        since_boot.now += 1
        assert get(store, A, B) == [None, record(1)]
        assert asyncio.run(store.sweep()) == [A]

    def test_records_of_any_size_are_kept(self, tmp_path: Path) -> None:
        """A session moves from size to size, and its old slots are used again."""
        store = reopen(tmp_path)
        before = None
        for step, size in enumerate([10, 10_000_000, 64, 1000, 70_000_000, 1000, 10], start=1):
            after = record_of(step, size)
            assert commit(store, Commit(A, before, after)) == [Outcome.DONE]
            assert get(store, A) == get(reopen(tmp_path), A) == [after]
            before = after
        assert_sound(store)

    def test_the_index_is_written_anew_while_others_use_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ten thousand sessions come and go through a store of a hundred; another reads along."""
        monkeypatch.setattr(index, "CROWDED", 0.04)
        store, other = reopen(tmp_path), reopen(tmp_path)
        commit(store, Commit(A, None, record(1)))
        for number in range(0, 10_000, 50):
            keys = [key(str(n), "tenant") for n in range(number, number + 50)]
            commit(store, *(Commit(one, None, record(1)) for one in keys))
            assert get(other, A, keys[7]) == [record(1), record(1)]
            commit(other, *(Commit(one, record(1), None) for one in keys))
        assert store._directory.header[AT_GENERATION] > 0
        assert asyncio.run(store.count()) == 1
        assert_sound(store)
        assert len(list(tmp_path.glob("index.*"))) == 1


class TestDamage:
    """What is not what was written is not served."""

    def test_a_slot_whose_bytes_changed_is_gone_and_that_is_said(
        self, tmp_path: Path, durability: Durability, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Any byte of it; the others live on."""
        for at in range(0, 200, 5):
            path = tmp_path / str(at)
            store = reopen(path, durability)
            commit(store, Commit(A, None, record(1)), Commit(B, None, record(1)))
            (slots,) = path.glob("slots.*")
            raw = bytearray(slots.read_bytes())
            if at in range(28, 32) or at >= used_bytes(raw):
                continue  # padding
            raw[at] ^= 1
            slots.write_bytes(raw)
            caplog.clear()
            other = reopen(path, durability)
            assert get(other, A, B) == [None, record(1)], at
            assert "session `A` is damaged on disk" in caplog.text
            assert asyncio.run(other.count()) == 1
            assert commit(other, Commit(A, None, record(1, birth=2))) == [Outcome.DONE]
            assert get(other, A, B) == [record(1, birth=2), record(1)]
            for one in (store, other):
                asyncio.run(one.close())

    def test_a_directory_that_is_no_store_is_refused(self, tmp_path: Path) -> None:
        """With the reason, and it stays as it was."""
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "thesis.tex").write_text("")
        with pytest.raises(SettingsError, match=r"holds thesis.tex, and no store of Carousel"):
            reopen(tmp_path / "a")
        assert [one.name for one in (tmp_path / "a").iterdir() if one.name != "lock"] == [
            "thesis.tex"
        ]
        with pytest.raises(SettingsError, match=r"cannot hold the sessions \(.*File exists"):
            reopen(tmp_path / "a" / "thesis.tex")
        with pytest.raises(SettingsError, match="/proc cannot hold the sessions"):
            reopen(Path("/proc"))

    def test_another_format_is_refused(self, tmp_path: Path) -> None:
        """Neither read nor overwritten."""
        store = reopen(tmp_path)
        store._directory.header[AT_FORMAT] += 1
        with pytest.raises(SettingsError, match="have format 0x103, expected 0x102"):
            reopen(tmp_path)
        (tmp_path / "header").write_bytes(b"short")
        with pytest.raises(SettingsError, match="header is not of Carousel"):
            reopen(tmp_path)

    def test_the_sessions_of_an_earlier_carousel_are_kept(self, tmp_path: Path) -> None:
        """Its records are read; and it does not open the directory again, nor meanwhile."""
        store = reopen(tmp_path)
        store._directory.header[AT_FORMAT] = 0x101
        commit(store, Commit(A, None, record(1)))
        with pytest.raises(SettingsError, match=r"an older version of Carousel, has .* stop it"):
            reopen(tmp_path)
        asyncio.run(store.close())
        store = reopen(tmp_path)
        assert store._directory.header[AT_FORMAT] == 0x102
        assert get(store, A) == [record(1)]
        keyed = replace(record(2), last=replace(record(2).last, key_digest=b"k" * 16))
        commit(store, Commit(A, record(1), keyed))
        asyncio.run(store.close())
        assert get(reopen(tmp_path), A) == [keyed]

    def test_a_store_that_lost_a_file_is_refused(self, tmp_path: Path) -> None:
        """Not served in part."""
        store = reopen(tmp_path)
        commit(store, Commit(A, None, record(1)))
        asyncio.run(store.close())
        (slots,) = tmp_path.glob("slots.*")
        slots.unlink()
        with pytest.raises(SettingsError, match=r"has 0 bytes, expected .* restore the directory"):
            reopen(tmp_path)

    def test_all_who_share_it_have_the_same_durability(self, tmp_path: Path) -> None:
        """Or a power cut would leave some sessions old."""
        store = reopen(tmp_path, "power")
        with pytest.raises(SettingsError, match="open with CAROUSEL_DURABILITY=power"):
            reopen(tmp_path, "process")
        asyncio.run(store.close())
        asyncio.run(reopen(tmp_path, "process").close())
        assert reopen(tmp_path, "power")

    def test_a_lock_that_is_never_let_go_is_an_error_and_not_a_hang(
        self, tmp_path: Path, durability: Durability, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Reading goes on."""
        store, other = reopen(tmp_path, durability), reopen(tmp_path, durability)
        commit(store, Commit(A, None, record(1)))
        monkeypatch.setattr(store._lock, "_timeout_s", 0.05)
        with other._lock.wait():
            with pytest.raises(StoreUnavailableError, match=r"locked for 0.05 s by another"):
                commit(store, Commit(A, record(1), record(2)))
            assert get(store, A) == [record(1)]
        assert commit(store, Commit(A, record(1), record(2))) == [Outcome.DONE]


def used_bytes(raw: bytearray) -> int:
    """Of the first slot of a file."""
    _, _, record_bytes, tenant, session_id = SLOT_HEAD.unpack_from(raw)
    return int(BODY_AT + record_bytes + tenant + session_id)


class TestDeath:
    """Processes that die, and disks that are full."""

    @pytest.mark.slow
    def test_a_writer_may_die_before_any_line(self, tmp_path: Path, durability: Durability) -> None:
        """No acknowledged commit is lost, none is torn, and the next process goes on."""
        done = run_script("die_at_every_line.py", tmp_path, durability)
        out, _ = done.communicate(timeout=600)
        assert done.returncode == 0, out
        assert int(out.split()[-2]) > 1000

    def test_writers_that_share_sessions_and_die_lose_no_update(
        self, tmp_path: Path, durability: Durability
    ) -> None:
        """Each step of a session is acknowledged to one of them, once."""
        workers = [run_script("hammer_disk_store.py", tmp_path, durability, 500, n) for n in (1, 2)]
        printed: list[str] = []
        killed = 0
        for seed in range(3, 9):
            victim = run_script("hammer_disk_store.py", tmp_path, durability, 1_000_000, seed)
            assert victim.stdout is not None
            printed += [victim.stdout.readline() for _ in range(50)]
            victim.kill()
            killed += 1
            lines = victim.communicate()[0].splitlines(keepends=True)
            printed += [one for one in lines if one.endswith("\n")]
        for worker in workers:
            printed += worker.communicate(timeout=120)[0].splitlines()
            assert worker.returncode == 0
        steps = Counter(tuple(line.split()) for line in printed)
        assert max(steps.values()) == 1
        store = DiskStore(tmp_path, 100, 3600.0, durability)
        assert_sound(store)
        last: dict[tuple[str, str], int] = {}
        for name, birth, step in steps:
            last[name, birth] = max(last.get((name, birth), 0), int(step))
        missing = sum(last.values()) - len(steps)
        assert missing <= killed * 3  # the batch that was under way
        for one in get(store, *(key(str(n)) for n in range(6))):
            if one is not None:
                assert one == record_of(one.step, len(one.state), one.birth)

    @pytest.mark.needs("unshare")
    def test_a_full_disk_takes_no_new_sessions_and_keeps_the_others_going(
        self, tmp_path: Path, durability: Durability
    ) -> None:
        """A real one, of 24 MB; what fails changes nothing."""
        prefix = own_mounts()
        if prefix is None:
            reason = "neither root nor sudo nor user namespaces: no disk of its own to fill"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
        done = run_script("fill_disk_store.py", tmp_path, durability, prefix=prefix)
        out, _ = done.communicate(timeout=120)
        assert done.returncode == 0, out


def own_mounts() -> list[str] | None:
    """What gives a command mounts of its own, if anything may."""
    ways = [
        ["unshare", "--mount"],
        ["sudo", "-n", "unshare", "--mount"],
        ["unshare", "--user", "--map-root-user", "--mount"],
    ]
    for way in ways:
        probe = [*way, "mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]
        with suppress(FileNotFoundError):
            if subprocess.run(probe, capture_output=True).returncode == 0:
                return way
    return None


def test_many_expire_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have their turn in between, and a full store makes the room it needs, no more."""
    monkeypatch.setattr(sessions, "EXPIRED_AT_ONCE", 3)
    clock = Clock(1000.0)
    store = DiskStore(tmp_path, 100, 60.0, machine=Machine(1, clock, lambda: 1e9))
    names = [SessionKey(tenant, f"s-{n}") for tenant in ("a", "b") for n in range(50)]
    commit(store, *(Commit(name, None, record(1)) for name in names))
    clock.now += 61
    (outcome,) = commit(store, Commit(SessionKey("c", "new"), None, record(1)))
    assert outcome is Outcome.DONE
    assert store._header[AT_LIVE] == 98
    (outcome,) = commit(store, Commit(SessionKey("b", "new"), None, record(1), 1))
    assert outcome is Outcome.DONE, "all of its tenant's had expired"

    async def turns() -> int:
        """Of the loop, while the rest expires."""
        counting = asyncio.ensure_future(asyncio.sleep(0))
        sweep, count = asyncio.ensure_future(store.sweep()), 0
        while not sweep.done():
            await asyncio.sleep(0)
            count += 1
        await counting
        return count

    before = store._header[AT_LIVE]
    assert asyncio.run(turns()) >= (before - 2) // 3
    assert asyncio.run(store.count()) == 2
    assert store._header[AT_FIRST_DUE] > clock.now * 1000
    assert_sound(store)
