"""Artifacts that come, go, and are broken while a service runs."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service.catalog import Catalog
from service.engine import Engine
from service.errors import ArtifactError, SelfTestError, SettingsError, UnknownModelError
from service.leases import Leases
from service.model import Model
from service.shelf import Shelf, names_at
from service.store.memory import MemoryStore
from service.watch import Watch
from tests.service.build_artifact import Spec, build_artifact
from tests.service.test_engine import Clock, request, rows, run

IDLE_TIMEOUT_S = 60.0


@dataclass
class Shop:
    """An engine over a shelf, whose time passes when the test says so."""

    root: Path
    clock: Clock = field(default_factory=Clock)
    loaded: list[str] = field(default_factory=list)
    delay_s: float = 0.0
    places: list[Path] = field(default_factory=list)

    def load(self, path: Path) -> Model:
        time.sleep(self.delay_s)
        model = Model.load(path)
        self.loaded.append(model.version)
        return model

    def add(self, name: str, seed: int, **spec: Any) -> str:
        """A new version, written after those that are there; its number."""
        return build_artifact(self.root, Spec(name, seed=seed, **spec)).name

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Shop"]:
        self.shelf = Shelf(self.places or [self.root], self.load)
        self.catalog = self.shelf.open()
        store = MemoryStore(100, IDLE_TIMEOUT_S, self.clock)
        self.engine = Engine(
            self.catalog,
            store,
            max_batch=8,
            max_queue=100,
            max_steps=100,
            fetch=lambda reference: self.shelf.fetch(self.catalog, reference),
        )
        self.engine.start()
        leases = Leases(store, IDLE_TIMEOUT_S / 4, self.clock)
        self.watch = Watch(self.catalog, self.shelf, self.engine.promotions, leases)
        try:
            yield self
        finally:
            await self.watch.close()
            await self.engine.close()

    async def ask(self, session_id: str, step: int | None = None, model: str | None = None) -> str:
        """One step; the version that answered."""
        answer = await self.engine.predict(request(session_id, rows(1), step, model))
        return answer.version


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_the_newest_of_each_name_is_loaded_and_others_when_they_are_asked_for(shop: Shop) -> None:
    """As after a restart over a durable store: live sessions find their versions."""
    old, new = shop.add("m", 1), shop.add("m", 2)

    async def scenario() -> None:
        async with shop.open():
            assert shop.loaded == [new]
            assert await shop.ask("s") == new
            answers = await asyncio.gather(*(shop.ask(f"t{n}", 0, f"m:{old}") for n in range(5)))
            assert answers == [old] * 5
            assert shop.loaded == [new, old]
            assert await shop.ask("t0", 1, "m") == old
            with pytest.raises(UnknownModelError):
                await shop.ask("u", 0, "m:0123")

    run(scenario())


def test_a_session_waits_for_its_version_and_others_do_not(shop: Shop) -> None:
    """Its requests keep their order meanwhile."""
    old, new = shop.add("m", 1), shop.add("m", 2)

    async def scenario() -> None:
        async with shop.open():
            await shop.ask("live", 0, f"m:{old}")
            shop.catalog.unload(f"m:{old}")
            shop.delay_s = 0.3
            waiting = [asyncio.create_task(shop.ask("live", step)) for step in (1, 2, 3)]
            for step in range(20):
                assert await shop.ask("other", step) == new
            assert not any(task.done() for task in waiting)
            assert await asyncio.gather(*waiting) == [old] * 3

    run(scenario())


def test_a_version_that_appears_is_proven_and_then_new_sessions_get_it(shop: Shop) -> None:
    """Live sessions stay; the loop is not held up while it is proven."""
    old = shop.add("m", 1)

    async def scenario() -> None:
        async with shop.open():
            await shop.ask("live")
            new = shop.add("m", 2)
            shop.delay_s = 0.2
            look = asyncio.create_task(shop.watch.look())
            during = 0
            while not look.done():
                await shop.ask("live")
                during += 1
            assert during > 20
            assert await shop.ask("live") == old
            assert await shop.ask("fresh") == new
            other = shop.add("n", 3)
            await shop.watch.look()
            assert shop.catalog.names == ["m", "n"]
            assert await shop.ask("third", 0, "n") == other

    run(scenario())


def test_a_broken_new_version_never_becomes_servable_and_disturbs_nobody(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """It is reported once, and the version before it goes on; a restart says the same."""
    good = shop.add("m", 1)

    async def scenario() -> None:
        async with shop.open():
            bad = shop.add("m", 2, golden_error=0.1)
            for _ in range(3):
                await shop.watch.look()
            assert await shop.ask("s") == good
            assert shop.catalog.served == [f"m:{good}"]
            assert list(shop.catalog.broken) == [f"m:{bad}"]
            assert not shop.catalog.unserved
            with pytest.raises(SelfTestError):
                await shop.ask("t", 0, f"m:{bad}")
            assert caplog.text.count(f"m:{bad} is not served") == 1
        async with shop.open():
            assert await shop.ask("s") == good
            assert list(shop.catalog.broken) == [f"m:{bad}"]
            assert not shop.catalog.unserved
            shutil.rmtree(shop.root / "m" / bad)
            await shop.watch.look()
            assert not shop.catalog.broken

    run(scenario())


def test_a_copy_that_was_not_whole_is_tried_again_when_it_is(shop: Shop) -> None:
    """A copy without a rename: the manifest came before the model."""
    shop.add("m", 1)
    new = shop.add("m", 2)
    elsewhere = shop.root.parent / "elsewhere"
    (shop.root / "m" / new).rename(elsewhere)

    async def scenario() -> None:
        async with shop.open():
            target = shop.root / "m" / new
            target.mkdir()
            shutil.copy(elsewhere / "manifest.json", target)
            await shop.watch.look()
            assert list(shop.catalog.broken) == [f"m:{new}"]
            shutil.copytree(elsewhere, target, dirs_exist_ok=True)
            await shop.watch.look()
            assert not shop.catalog.broken
            assert await shop.ask("s") == new

    run(scenario())


def test_a_name_of_which_nothing_can_be_served_says_why(shop: Shop) -> None:
    """Not ready, and its requests get the reason."""
    bad = shop.add("m", 1, golden_error=0.1)
    shop.add("n", 2)

    async def scenario() -> None:
        async with shop.open():
            assert [str(error.data["artifact"]) for error in shop.catalog.unserved] == [
                str(shop.root / "m" / bad)
            ]
            with pytest.raises(SelfTestError):
                await shop.ask("s", 0, "m")

    run(scenario())


def test_a_bug_in_loading_breaks_that_artifact_alone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its traceback is in the log."""
    good = shop.add("m", 1)

    async def scenario() -> None:
        async with shop.open():
            bad = shop.add("m", 2)
            monkeypatch.setattr(Model, "load", lambda path: 1 / 0)
            await shop.watch.look()
            assert await shop.ask("s") == good
            with pytest.raises(ArtifactError, match="cannot be loaded"):
                await shop.ask("t", 0, f"m:{bad}")

    run(scenario())


def test_a_version_taken_away_serves_its_sessions_until_they_have_ended(shop: Shop) -> None:
    """New ones get what is left; it is unloaded when no live session can need it."""
    old, new = shop.add("m", 1), shop.add("m", 2)

    async def scenario() -> None:
        async with shop.open():
            await shop.ask("live")
            shutil.rmtree(shop.root / "m" / new)
            await shop.watch.look()
            assert await shop.ask("fresh") == old
            with pytest.raises(UnknownModelError):
                await shop.ask("other", 0, f"m:{new}")
            for _ in range(20):
                shop.clock.now += IDLE_TIMEOUT_S / 2
                assert await shop.ask("live") == new
                await shop.watch.look()
            for _ in range(20):
                shop.clock.now += IDLE_TIMEOUT_S / 8
                await shop.watch.look()
                if f"m:{new}" not in shop.catalog.served:
                    break
            assert shop.clock.now >= 11 * IDLE_TIMEOUT_S
            assert shop.catalog.served == [f"m:{old}"]

    run(scenario())


def test_an_older_version_that_no_session_needs_is_unloaded_and_comes_back(shop: Shop) -> None:
    """Its artifact is still there; the newest is never unloaded."""
    old, new = shop.add("m", 1), shop.add("m", 2)

    async def scenario() -> None:
        async with shop.open():
            await shop.ask("live", 0, f"m:{old}")
            for _ in range(20):
                shop.clock.now += IDLE_TIMEOUT_S / 8
                await shop.watch.look()
            assert shop.catalog.served == [f"m:{new}"]
            assert await shop.ask("again", 0, f"m:{old}") == old
            assert shop.loaded == [new, old, old]

    run(scenario())


def test_artifacts_named_by_their_directories_are_all_loaded_and_stay(shop: Shop) -> None:
    """Side by side; the one written last is the newest."""
    old, new = shop.add("m", 1), shop.add("m", 2)
    shop.places = [shop.root / "m" / new, shop.root / "m" / old]

    async def scenario() -> None:
        async with shop.open():
            assert shop.catalog.served == sorted([f"m:{old}", f"m:{new}"])
            assert await shop.ask("s") == new
            for _ in range(20):
                shop.clock.now += IDLE_TIMEOUT_S / 8
                await shop.watch.look()
            assert len(shop.catalog.served) == 2

    run(scenario())


def test_rows_that_fit_the_old_version_only_reach_its_session(shop: Shop) -> None:
    """The newest takes another width: the session is looked up before a request is refused."""
    old = shop.add("m", 1)

    async def scenario() -> None:
        async with shop.open():
            await shop.ask("live")
            shop.add("m", 2, input_size=3)
            await shop.watch.look()
            assert await shop.ask("live", 1) == old
            assert await shop.ask("live", 2, "m") == old

    run(scenario())


def test_names_at_places(shop: Shop) -> None:
    """Of a root, of a NAME/, of an artifact, and of a path where nothing lies."""
    version = shop.add("m", 1)
    shop.add("n", 1)
    (shop.root / "m" / ".building").mkdir()
    (shop.root / "m" / ".building" / "manifest.json").write_text("{}")
    assert names_at([shop.root]) == ["m", "n"]
    assert names_at([shop.root / "m"]) == ["m"]
    assert names_at([shop.root / "m" / version, shop.root / "o" / "0123"]) == ["m", "o"]


def test_the_default_model_must_be_there(shop: Shop) -> None:
    """As where models are given."""
    shop.add("m", 1)
    with pytest.raises(SettingsError, match="CAROUSEL_DEFAULT_MODEL=n is not served"):
        Shelf([shop.root], shop.load).open("n")
    catalog: Catalog = Shelf([shop.root], shop.load).open("m")
    assert catalog.for_new(None).name == "m"
