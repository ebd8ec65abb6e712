"""Forecasts through the engine, against the plain loop of a client who feeds replies back."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from msgspec import structs

from service.catalog import Catalog
from service.engine import Engine
from service.errors import (
    CannotForecastError,
    CapacityError,
    CarouselError,
    DrainingError,
    ModelConflictError,
    RequestError,
    ResultNotFiniteError,
    SessionGoneError,
    SessionNotFoundError,
    ShapeError,
    StepConflictError,
    TooLongError,
    UnknownModelError,
)
from service.forecast import MAX_AHEAD, ForecastRequest, Line
from service.job import Request
from service.model import Model
from service.pipeline import Error, Pipeline
from service.runtime import Runtime
from service.session import Record, SessionKey
from service.store.memory import MemoryStore
from service.wire import Array, RowShape
from tests.service.build_artifact import Spec, build_artifact, scaling
from tests.service.test_engine import ROOM, Clock, Given, rows, run, running
from tests.service.test_text import DREAMER, GUARD, JUDGE, ONE_HOT, SAMPLE, SPEAKER

LOOP = Spec("loop", 2, 2, seed=11, scaling=scaling(2, 2))
NOISY = Spec(
    "noisy",
    2,
    2,
    seed=11,
    scaling=scaling(2, 2).model_copy(update={"error": Error(std=[0.5, 2.0])}),
)
# Its y in raw units is ten times what its head gives, so that it drives itself beyond 6.
ESCAPING = Spec(
    "escaping",
    seed=3,
    overflow_above=6.0,
    scaling=Pipeline.model_validate({"y": {"mean": [1.0], "std": [10.0]}}),
)
HALF_SCALED = Spec(
    "half-scaled", seed=12, scaling=Pipeline.model_validate({"x": {"mean": [0.7], "std": [1e-3]}})
)
SPECS = (LOOP, HALF_SCALED, NOISY, ESCAPING, DREAMER, ONE_HOT, SPEAKER, JUDGE, GUARD)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    root: Path = tmp_path_factory.mktemp("forecasts")
    return {spec.name: Model.load(build_artifact(root, spec)) for spec in SPECS}


class Text:
    """The x of a text, as JSON has it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def decode(self, shape: RowShape) -> Array:
        assert shape.vocabulary is not None
        return shape.vocabulary.ids_of(self._text)


def asked(session_id: str | None, horizon: int, **more: Any) -> ForecastRequest:
    return ForecastRequest("", session_id, horizon, **more)


async def forecast(engine: Engine, request: ForecastRequest) -> list[Line]:
    """All its lines."""
    found: list[Line] = []
    accepted = await engine.forecast(request)
    while lines := await engine.read_forecast(accepted):
        found += lines
    return found


async def predict(engine: Engine, session_id: str, x: Array | Text, **more: Any) -> Any:
    given = x if isinstance(x, Text) else Given(x)
    return await engine.predict(Request(SessionKey("", session_id), given, **more))


def as_json_has_it(y: Array) -> Array:
    """float64, of the digits that the wire shows."""
    return np.array(orjson.loads(orjson.dumps(y, option=orjson.OPT_SERIALIZE_NUMPY)))


def values(lines: list[Line], field: str = "y") -> list[Any]:
    return [line.shown[field] for line in lines]


def same(one: list[Line], other: list[Line]) -> bool:
    return len(one) == len(other) and all(map(_same_line, one, other))


def _same_line(one: Line, other: Line) -> bool:
    fields = one.shown.keys() == other.shown.keys()
    return (
        one.step == other.step
        and fields
        and all(np.array_equal(one.shown[name], other.shown[name]) for name in one.shown)
    )


@pytest.mark.parametrize("name", ["sine-cell", "loop", "half-scaled"])
def test_a_forecast_is_what_feeding_the_replies_back_gives(
    name: str, sine: Model, made: dict[str, Model]
) -> None:
    """To the bit; the first line is what the last reply said."""
    model = sine if name == "sine-cell" else made[name]
    x = rows(9, width=model.row_shape.tail[0]) * 3 + 20

    async def scenario() -> None:
        async with running(Catalog([model])) as engine:
            await predict(engine, "s", x)
            lines = await forecast(engine, asked("s", 40))
            assert [line.step for line in lines] == list(range(9, 49))
            y = (await predict(engine, "fed", x)).y[-1:]
            for line in lines:
                assert np.array_equal(line.shown["y"], y[0])
                y = (await predict(engine, "fed", as_json_has_it(y))).y
            assert np.ptp(values(lines), axis=0).min() > 1e-3  # or the comparison says little

    run(scenario())


@pytest.mark.parametrize(
    ("spec", "field", "start", "choose"),
    [
        (DREAMER, "text", "a bad cab", None),
        (DREAMER, "text", "a bad cab", {**SAMPLE, "temperature": 3.0, "seed": 5}),
        (DREAMER, "text", "a bad cab", {"method": "argmax"}),
        (ONE_HOT, "text", "fed", {"method": "sample"}),
        (SPEAKER, "tokens", "to be", {"method": "sample"}),
    ],
)
def test_text_goes_on_as_the_session_itself_would(
    spec: Spec, field: str, start: str, choose: Mapping[str, Any] | None, made: dict[str, Model]
) -> None:
    """The tokens that are chosen are those which the replies choose, drawn ones too."""

    async def scenario() -> None:
        async with running(Catalog([made[spec.name]])) as engine:
            await predict(engine, "s", Text(start))
            lines = await forecast(engine, asked("s", 30, choose=choose))
            reply = await predict(engine, "t", Text(start), choose=choose)
            alike = await forecast(engine, asked("t", 30, choose=choose))
            for line in alike:
                token = reply.result[field][-1]
                assert (line.shown[field], line.step) == (token, reply.step)
                assert np.array_equal(line.shown["y"], reply.y[-1])
                reply = await predict(engine, "t", Text(token), choose=choose)
            drawn = (choose or SAMPLE)["method"] == "sample"
            assert same(lines, alike) is not drawn  # another session draws otherwise
            assert len(set(values(alike, field))) > (1 if drawn else 0)

    run(scenario())


Wide = {"samples": 24, "seed": 3}


@pytest.mark.parametrize(
    ("name", "start", "more"),
    [
        ("loop", rows(5, width=2), {}),
        ("noisy", rows(5, width=2), Wide),
        ("dreamer", Text("a bad cab"), Wide),
    ],
)
def test_a_forecast_does_not_depend_on_who_shares_its_batches(
    name: str, start: Array | Text, more: dict[str, Any], made: dict[str, Model]
) -> None:
    """Alone, beside steps and chunks of others, beside other forecasts, in batches of any size."""
    model = made[name]

    async def busy(engine: Engine, stop: asyncio.Event) -> None:
        n = 0
        while not stop.is_set():
            n += 1
            await asyncio.gather(*(predict(engine, f"{k}", start) for k in range(n % 7)))
            await asyncio.sleep(0)

    async def scenario(max_batch: int, crowded: bool) -> list[Line]:
        async with running(Catalog([model]), max_batch=max_batch) as engine:
            await predict(engine, "s", start)
            stop = asyncio.Event()
            if not crowded:
                return await forecast(engine, asked("s", 50, **more))
            others = [asyncio.create_task(busy(engine, stop)) for _ in range(3)]
            beside = [asked("s", n, **more) for n in (50, 20, 70)]
            found = await asyncio.gather(*(forecast(engine, one) for one in beside))
            stop.set()
            await asyncio.gather(*others)
            assert same(found[1], found[0][:20]) and same(found[2][:50], found[0])
            return found[0]

    alone = run(scenario(64, crowded=False))
    for max_batch in (24, 25, 200):
        assert same(run(scenario(max_batch, crowded=True)), alone)


@pytest.mark.parametrize(("name", "start"), [("noisy", rows(3, width=2)), ("dreamer", Text("a"))])
def test_a_sample_does_not_depend_on_how_many_there_are(
    name: str, start: Array | Text, made: dict[str, Model]
) -> None:
    """Nor do two samples, seeds or sessions agree; the same seed draws the same again."""
    field = "y" if name == "noisy" else "text"

    async def scenario() -> None:
        async with running(Catalog([made[name]])) as engine:
            await predict(engine, "s", start)
            await predict(engine, "t", start)

            async def drawn(session_id: str, samples: int, seed: int) -> Array:
                lines = await forecast(engine, asked(session_id, 40, samples=samples, seed=seed))
                return np.array(values(lines, field))

            few, many = await drawn("s", 3, 1), await drawn("s", 40, 1)
            assert np.array_equal(few, many[:, :3])
            assert not any(np.array_equal(many[:, 0], many[:, k]) for k in range(1, 40))
            assert not np.array_equal(few, await drawn("s", 3, 2))
            assert not np.array_equal(few, await drawn("t", 3, 1))

    run(scenario())


def test_samples_of_a_forecaster_are_off_by_its_error(made: dict[str, Model]) -> None:
    """At the first step by just that; without `samples` there is none, and nothing is drawn."""

    async def scenario() -> None:
        async with running(Catalog([made["noisy"]]), max_batch=4000, max_queue=8000) as engine:
            reply = await predict(engine, "s", rows(5, width=2))
            (first,) = values(await forecast(engine, asked("s", 1, samples=4000)))
            off = first - reply.y[-1]
            assert np.allclose(off.mean(axis=0), 0, atol=4 * np.array([0.5, 2.0]) / 4000**0.5)
            assert np.allclose(off.std(axis=0), [0.5, 2.0], rtol=0.06)
            assert abs(np.corrcoef(off.T)[0, 1]) < 0.06
            lines = await forecast(engine, asked("s", 3))
            assert np.array_equal(lines[0].shown["y"], reply.y[-1])

    run(scenario())


class Counting(MemoryStore):
    """A store that counts the commits."""

    commits = 0

    async def commit(self, commits: Any) -> Any:
        self.commits += 1
        return await super().commit(commits)


def test_a_forecast_leaves_its_session_as_it_is(made: dict[str, Model]) -> None:
    """The same record, no commit, and no longer life."""
    clock, store = Clock(), Counting(**{**ROOM, "idle_timeout_s": 60.0})
    store._clock = clock

    async def scenario() -> None:
        async with running(Catalog([made["loop"]]), store=store) as engine:
            await predict(engine, "s", rows(5, width=2))
            before = await engine.look_up(SessionKey("", "s"))
            clock.now = 50.0
            given = Given(rows(4, width=2))
            assert len(await forecast(engine, asked("s", 30, step=5, rows=given))) == 30
            assert await engine.look_up(SessionKey("", "s")) == before
            assert store.commits == 1
            clock.now = 60.0
            with pytest.raises(SessionNotFoundError):
                await forecast(engine, asked("s", 3))
            assert await store.count() == 0

    run(scenario())


def test_a_forecast_keeps_the_state_that_it_began_from(made: dict[str, Model]) -> None:
    """While its session is advanced and then dropped."""
    x = rows(8, width=2)

    async def scenario() -> None:
        async with running(Catalog([made["loop"]])) as engine:
            await predict(engine, "s", x[:5])
            alone = await forecast(engine, asked("s", 300))
            accepted = await engine.forecast(asked("s", 300))
            assert accepted.from_step == 5
            lines = await engine.read_forecast(accepted)
            await predict(engine, "s", x[5:])
            lines += await engine.read_forecast(accepted)
            await engine.drop(SessionKey("", "s"))
            while more := await engine.read_forecast(accepted):
                lines += more
            assert same(lines, alone)

    run(scenario())


def test_rows_that_are_read_first_do_not_move_the_session(made: dict[str, Model]) -> None:
    """As if they had been sent to another session that had read the same; also in slices."""
    x = rows(700, width=2)

    async def scenario() -> None:
        async with running(Catalog([made["loop"]])) as engine:
            await predict(engine, "s", x[:5])
            lines = await forecast(engine, asked("s", 20, rows=Given(x[5:])))
            await predict(engine, "whole", x)
            assert same(lines, await forecast(engine, asked("whole", 20)))
            assert lines[0].step == 700
            assert (await engine.look_up(SessionKey("", "s"))).step == 5
            fresh = await forecast(engine, asked(None, 20, rows=Given(x)))
            assert same(fresh, lines)

    run(scenario())


@pytest.mark.parametrize(
    ("request_", "error", "said"),
    [
        (asked("s", 3, step=4), StepConflictError, "stands at step 5, request says 4"),
        (asked("s", 3, step=0), StepConflictError, "stands at step 5, request says 0"),
        (asked("s", 3, model="sine-cell"), ModelConflictError, "lives on loop:"),
        (asked("nobody", 3), SessionNotFoundError, "leave `session_id` out, and send `x`"),
        (asked("nobody", 3, step=0, rows=Given(rows(2))), SessionNotFoundError, "no session"),
        (asked("nobody", 3, step=7), SessionGoneError, "request says step 7"),
        (asked(None, 3), RequestError, "expected `session_id`, or `x` to begin with, or both"),
        (asked(None, 3, rows=Given(rows(2)), step=2), RequestError, "there is no `session_id`"),
        (asked(None, 3, rows=Given(rows(2))), RequestError, "`model` to name one of"),
        (asked(None, 3, rows=Given(rows(2)), model="x"), UnknownModelError, "`x` is not served"),
        (asked("s", 3, rows=Given(rows(2))), ShapeError, r"shape \(2, 1\), expected \(time, 2\)"),
        (asked("s", 3, rows=Given(rows(4001, width=2))), TooLongError, "has 4001 steps"),
        (asked("s", 1001), TooLongError, "`horizon` is 1001, the server takes 1000 steps; ask"),
        (asked("s", 501, samples=2), TooLongError, "1000 steps of all 2 samples .* at most 500"),
        (asked("s", 3, samples=65), TooLongError, "`samples` is 65, .* runs 64 rows together"),
        (asked("s", 3, samples=2), CannotForecastError, "all would be the same: .* no `error`"),
        (asked("s", 3, seed=2), RequestError, "`seed` is 2, and nothing is drawn"),
        (asked("s", 3, choose={"method": "argmax"}), RequestError, "nothing to choose from"),
        (asked("s", 3, want=("text",)), RequestError, "`want` is `text`, expected some of y"),
        (asked("noisy", 3, seed=2), RequestError, "without `samples` a forecast is the model's"),
        (asked("text", 3, samples=2, choose={"method": "argmax"}), CannotForecastError, "likelie"),
        (asked("text", 3, seed=2, choose={"method": "argmax"}), RequestError, "nothing is drawn"),
        (asked("judge", 3), CannotForecastError, "its y is classes, and its x is not"),
        (asked("guard", 3), CannotForecastError, "its y is a score, and its x is not"),
        (asked("wide", 3), CannotForecastError, r"its y is float32 of shape \['B', 'T', 2\], its"),
    ],
)
def test_what_cannot_be_forecast_is_refused(
    request_: ForecastRequest,
    error: type[CarouselError],
    said: str,
    catalog: Catalog,
    made: dict[str, Model],
) -> None:
    """With what came, what was expected and what to do; nothing is run or kept."""
    models = [*catalog.models, *made.values()]
    begun: dict[str, tuple[str, Array | Text]] = {
        "s": ("loop", rows(5, width=2)),
        "noisy": ("noisy", rows(5, width=2)),
        "text": ("dreamer", Text("a bad")),
        "judge": ("judge", rows(5, width=2)),
        "guard": ("guard", rows(5, width=2)),
        "wide": ("series-lstm", rows(5, width=8)),
    }

    async def scenario() -> None:
        async with running(Catalog(models), max_forecast_steps=1000) as engine:
            for session_id, (model, x) in begun.items():
                await predict(engine, session_id, x, model=model)
            with pytest.raises(error, match=said):
                await engine.forecast(request_)

    run(scenario())


def test_a_session_whose_last_reply_is_not_there_needs_rows(made: dict[str, Model]) -> None:
    """As one that was put together elsewhere: its state says nothing of the next x."""
    x = rows(6, width=2)

    async def scenario() -> None:
        async with running(Catalog([made["loop"]])) as engine:
            await predict(engine, "s", x[:5])

            def forget(record: Record | None) -> Record | None:
                assert record is not None
                last = structs.replace(record.last, y=b"")
                return structs.replace(record, last=last)

            await engine.change(SessionKey("", "s"), forget)
            with pytest.raises(RequestError, match=r"has no last reply .* send `x`"):
                await engine.forecast(asked("s", 3))
            lines = await forecast(engine, asked("s", 3, rows=Given(x[5:])))
            await predict(engine, "whole", x)
            assert same(lines, await forecast(engine, asked("whole", 3)))

    run(scenario())


def test_a_result_that_is_not_finite_ends_the_forecast_alone(made: dict[str, Model]) -> None:
    """After the lines before it; those beside it and its session do not notice."""

    async def scenario() -> None:
        async with running(Catalog([made["escaping"], made["loop"]])) as engine:
            await predict(engine, "s", rows(3), model="escaping")
            before = await engine.look_up(SessionKey("", "s"))
            accepted = await engine.forecast(asked("s", 500))
            lines: list[Line] = []
            with pytest.raises(ResultNotFiniteError, match="is not finite at step") as caught:
                while more := await engine.read_forecast(accepted):
                    lines += more
            assert caught.value.data == {"at_step": 3 + len(lines)}
            assert 1 <= len(lines) < 100 and abs(lines[-1].shown["y"][0]) > 6
            assert await engine.look_up(SessionKey("", "s")) == before
            wild = asked("s", 5, rows=Given(np.full((3, 1), 7.0)))
            with pytest.raises(ResultNotFiniteError, match="at step"):
                await forecast(engine, wild)

    run(scenario())


def test_a_forecast_waits_for_its_reader(sine: Model) -> None:
    """So much ahead, and no more; it goes on when the lines are taken."""

    async def scenario() -> None:
        async with running(Catalog([sine]), max_forecast_steps=10**6) as engine:
            await predict(engine, "s", rows(3))
            accepted = await engine.forecast(asked("s", 3 * MAX_AHEAD))
            ran = 0
            while not accepted.is_ahead:
                ran = accepted.next_step
                await predict(engine, "other", rows(1))
            for _ in range(20):
                await predict(engine, "other", rows(1))
            assert accepted.next_step == 3 + MAX_AHEAD >= ran
            lines: list[Line] = []
            while more := await engine.read_forecast(accepted):
                assert len(more) <= MAX_AHEAD
                lines += more
            assert [line.step for line in lines] == list(range(3, 3 + 3 * MAX_AHEAD))

    run(scenario())


@pytest.mark.parametrize("parked", [False, True])
def test_a_forecast_that_nobody_waits_for_stops(sine: Model, parked: bool) -> None:
    """Wherever it was; the engine can then end."""

    async def scenario() -> None:
        async with running(Catalog([sine]), max_forecast_steps=10**9) as engine:
            await predict(engine, "s", rows(3))
            accepted = await engine.forecast(asked("s", 10**9))
            while parked and not accepted.is_ahead:
                await predict(engine, "other", rows(1))
            engine.abandon(accepted)
            for _ in range(3):
                await predict(engine, "other", rows(1))
            stands = accepted.next_step
            for _ in range(20):
                await predict(engine, "other", rows(1))
            assert accepted.next_step == stands

    run(scenario())


def test_a_forecast_of_a_million_steps_holds_nobody_up(
    sine: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that comes meanwhile is in the next call of the model, beside the forecast."""
    calls: list[int] = []
    real = Model.run

    def count(self: Model, chunks: Any, states: Any) -> Any:
        calls.append(len(chunks))
        return real(self, chunks, states)

    monkeypatch.setattr(Model, "run", count)

    async def drain(engine: Engine, accepted: Any) -> None:
        while await engine.read_forecast(accepted):
            pass

    async def scenario() -> None:
        async with running(Catalog([sine]), max_forecast_steps=10**6) as engine:
            await predict(engine, "s", rows(3))
            accepted = await engine.forecast(asked("s", 10**6))
            reading = asyncio.create_task(drain(engine, accepted))
            await asyncio.sleep(0)
            for _ in range(50):
                before = len(calls)
                await predict(engine, "other", rows(1))
                assert len(calls) - before <= 2
                assert calls[-1] <= 2 and 2 in calls[before:]
            engine.abandon(accepted)
            with pytest.raises(asyncio.CancelledError):
                await reading

    run(scenario())


def test_a_draining_engine_ends_its_forecasts_and_takes_no_more(sine: Model) -> None:
    """Every line is told."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            await predict(engine, "s", rows(3))
            accepted = await engine.forecast(asked("s", 200))
            engine.drain()
            with pytest.raises(DrainingError):
                await engine.forecast(asked("s", 200))
            await engine.close()
            assert len(await engine.read_forecast(accepted)) == 200
            assert await engine.read_forecast(accepted) == []

    run(scenario())


def test_a_full_queue_refuses_a_forecast(sine: Model) -> None:
    """As any other request."""

    async def scenario() -> None:
        async with running(Catalog([sine]), max_queue=1) as engine:
            await predict(engine, "s", rows(3))
            accepted = await engine.forecast(asked("s", 5))
            with pytest.raises(CapacityError, match="1 requests"):
                await engine.forecast(asked("s", 5))
            while await engine.read_forecast(accepted):
                pass
            assert len(await forecast(engine, asked("s", 5))) == 5

    run(scenario())


def test_forecasts_leave_room_for_others(made: dict[str, Model]) -> None:
    """Their samples are at most half of the queue, and count until they end."""

    async def scenario() -> None:
        async with running(Catalog([made["noisy"]]), max_batch=8, max_queue=20) as engine:
            await predict(engine, "s", rows(3, width=2))
            first = await engine.forecast(asked("s", 300, samples=8))
            second = await engine.forecast(asked("s", 5))
            with pytest.raises(CapacityError, match="of 9 samples are under way and 2 more") as e:
                await engine.forecast(asked("s", 5, samples=2))
            assert e.value.data == {"limit": "forecasts", "retry_after_s": 1}
            assert (await predict(engine, "s", rows(1, width=2))).step == 4
            while await engine.read_forecast(second):
                pass
            assert len(await forecast(engine, asked("s", 5, samples=2))) == 5
            engine.abandon(first)
            assert len(await forecast(engine, asked("s", 5, samples=8))) == 5

    run(scenario())


def test_a_tenants_forecasts_leave_room_for_its_other_requests(made: dict[str, Model]) -> None:
    """And those of other tenants are not counted among them."""
    limits = {"max_batch": 8, "max_queue": 200, "max_queue_per_tenant": 20}
    start = Given(rows(3, width=2))

    async def scenario() -> None:
        async with running(Catalog([made["noisy"]]), **limits) as engine:
            wide = asked(None, 300, samples=8, rows=start)
            first = await engine.forecast(wide)
            with pytest.raises(CapacityError, match="your forecasts of 8 samples") as caught:
                await engine.forecast(wide)
            assert caught.value.data["limit"] == "tenant_forecasts"
            assert len(await forecast(engine, replace(wide, tenant="acme"))) == 300
            engine.abandon(first)

    run(scenario())


def test_a_model_that_is_not_isolated_forecasts_the_same(made: dict[str, Model]) -> None:
    """Few samples, as each is a call of its own."""
    apart = replace(made["noisy"], runtime=Runtime(made["noisy"].artifact, "onnx-fp32"))
    apart.runtime.isolated = False
    found: list[list[Line]] = []

    async def scenario(model: Model, check: Callable[[Engine], Any]) -> None:
        async with running(Catalog([model])) as engine:
            await predict(engine, "s", rows(3, width=2))
            found.append(await forecast(engine, asked("s", 10, samples=16)))
            await check(engine)

    async def fewer(engine: Engine) -> None:
        with pytest.raises(TooLongError, match=r"`samples` is 17, .* runs 16 rows"):
            await engine.forecast(asked("s", 10, samples=17))

    async def more(engine: Engine) -> None:
        assert len(await forecast(engine, asked("s", 10, samples=17))) == 10

    run(scenario(apart, fewer))
    run(scenario(made["noisy"], more))
    assert same(*found)


def test_a_slow_model_forecasts_in_a_thread_and_gives_the_same(sine: Model) -> None:
    """The loop answers others meanwhile."""
    slow = Model(sine.artifact, sine.runtime, type(sine.cost)(base_s=1.0, per_row_s=0.0))
    found: list[list[Line]] = []

    async def scenario(model: Model) -> None:
        async with running(Catalog([model])) as engine:
            await predict(engine, "s", rows(3))
            found.append(await forecast(engine, asked("s", 50)))

    for model in (sine, slow):
        run(scenario(model))
    assert same(*found)
