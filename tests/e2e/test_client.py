"""The Python client, and BentoML's own, against a real `bentoml serve` that wants a key."""

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pandas as pd
import pytest

from service.client import (
    AsyncClient,
    BadInput,
    Client,
    ModelConflict,
    NotAllowed,
    NotRun,
    Overloaded,
    Reply,
    ResultNotFinite,
    SessionExists,
    SessionGone,
    SessionNotFound,
    StepConflict,
    TooLong,
    UnknownModel,
)
from service.model import Model
from tests.chaos.cutting import CuttingProxy
from tests.e2e.conftest import FRAGILE, ROOT, SERIES, SINE, Server, start_server
from tests.e2e.test_keys import keys
from tests.service.build_artifact import build_artifact
from tests.service.test_text import DREAMER

MODEL = "sine-cell"
TRANSPORTS = ("ws", "ndjson")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A service of four models with a short queue, and the key that it wants."""
    directory = tmp_path_factory.mktemp("client")
    for spec in (SINE, SERIES, FRAGILE, DREAMER):
        build_artifact(directory / "artifacts", spec)
    key = keys("new", "--tenant", "acme", "--file", str(directory / "keys.toml"))
    server = start_server(
        directory,
        CAROUSEL_ARTIFACTS=str(directory / "artifacts"),
        CAROUSEL_API_KEYS_FILE=str(directory / "keys.toml"),
        CAROUSEL_MAX_QUEUE="4",
    )
    try:
        server.wait_until_it_listens()
        yield server, key
    finally:
        server.stop()


@pytest.fixture
def carousel(locked: tuple[Server, str]) -> Iterator[Client]:
    server, key = locked
    with Client(server.url, api_key=key, timeout_s=20) as client:
        yield client


def whole(model: Model, x: np.ndarray) -> list[list[float]]:
    """y of a plain loop, the numbers as JSON has them."""
    (y,), _, _ = model.run([model.encode(x)], [model.initial_state])
    return [[float(str(value)) for value in row] for row in model.decode(y)]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape)


# Calls ------------------------------------------------------------------------------------------


def test_arrays_in_arrays_out(carousel: Client, models: dict[str, Model]) -> None:
    """numpy of any float dtype, and lists: what is run is the number that the caller has."""
    x = noise(6, 8).astype("float32")
    pump = carousel.session("arrays", model="series-lstm")
    y = np.concatenate([pump.predict(x[:2]), pump.predict(x[2:4].tolist()), pump.predict(x[4:])])
    assert y.tolist() == whole(models["series-lstm"], x.astype("float64"))
    assert pump.step == pump.where().step == 6


def test_pandas_in_pandas_out(carousel: Client, models: dict[str, Model]) -> None:
    """With its index."""
    index = pd.date_range("2026-01-01", periods=6, freq="h")
    frame = pd.DataFrame(noise(6, 8), index=index)
    y = carousel.session("frame", model="series-lstm").predict(frame)
    assert isinstance(y, pd.DataFrame)
    assert y.index.equals(index)
    assert y.to_numpy().tolist() == whole(models["series-lstm"], frame.to_numpy())
    series = frame[0]
    y = carousel.session("series", model=MODEL).predict(series)
    assert isinstance(y, pd.Series)
    assert y.index.equals(index)
    assert y.tolist() == [row[0] for row in whole(models[MODEL], series.to_numpy()[:, None])]


def test_text_in_text_out(carousel: Client) -> None:
    """Whatever the model's pipeline reads in y is in the reply; what was not wanted is not."""
    reply = carousel.session("text", model="dreamer").advance("a bad cab", want=["text"])
    assert reply.y is None
    assert len(reply.more["text"]) == reply.step == 9
    with carousel.session("text-stream", model="dreamer").stream() as stream:
        for letter in "a bad cab":
            stream.send(letter)
        drawn = "".join(answer.more["text"] for answer in stream if isinstance(answer, Reply))
    assert len(drawn) == 9


def test_a_session_joins_where_the_server_holds_it(carousel: Client) -> None:
    """Unless it is told a step; whoever else moves it is found out."""
    first = carousel.session("joined", model=MODEL)
    first.predict([[0.1], [0.2]])
    second = carousel.session("joined")
    assert second.advance([[0.3]]).step == 3
    with pytest.raises(StepConflict, match="stands at step 3, request says 2") as caught:
        first.predict([[0.9]])
    assert (caught.value.expected, caught.value.unacknowledged) == (3, ())
    assert first.step == 2
    with pytest.raises(StepConflict):
        carousel.session("joined", step=0).predict([[0.1]])


def test_copies_of_a_session(carousel: Client) -> None:
    """A fork, a snapshot, what was restored and the session itself go on alike."""
    pump = carousel.session("copied", model=MODEL)
    pump.predict([[0.1], [0.2]])
    fork = pump.fork()
    file = pump.snapshot()
    restored = carousel.session("copied-again", model=MODEL)
    restored.restore(file)
    with pytest.raises(SessionExists):
        restored.restore(file)
    expected = pump.predict([[0.3]]).tolist()
    assert fork.predict([[0.3]]).tolist() == restored.predict([[0.3]]).tolist() == expected
    restored.restore(file, replace=True)
    assert restored.step == 2
    fork.drop()
    with pytest.raises(SessionNotFound):
        fork.where()
    restored.restart()
    assert restored.advance([[0.1]]).created


def test_what_is_gone_is_not_begun_again_in_silence(carousel: Client) -> None:
    """It is raised, until `restart` or `on_gone` says otherwise."""
    for on_gone in ("raise", "restart"):
        pump = carousel.session("gone", model=MODEL, on_gone=on_gone)
        pump.predict([[0.1]])
        carousel.session("gone").drop()
        if on_gone == "raise":
            with pytest.raises(SessionGone):
                pump.predict([[0.2]])
            assert pump.step == 1
            pump.restart()
        reply = pump.advance([[0.2]])
        assert (reply.step, reply.created) == (1, True)


def test_each_refusal_is_told_by_its_class(carousel: Client, locked: tuple[Server, str]) -> None:
    """And the session stays where it was."""
    pump = carousel.session("refused", model=MODEL)
    pump.predict([[0.1]])
    with pytest.raises(BadInput, match="row 1") as caught:
        pump.predict([[0.1], [float("nan")]])
    assert caught.value.code == "not_finite"
    with pytest.raises(BadInput, match="expected \\(time, 1\\)"):
        pump.predict([0.1])
    with pytest.raises(TooLong):
        pump.predict(noise(20_000, 1))
    with pytest.raises(ModelConflict) as conflict:
        carousel.session("refused", model="fragile").predict([[0.1]])
    assert conflict.value.expected.startswith("sine-cell:")
    with pytest.raises(UnknownModel):
        carousel.session("unknown", model="nobody").predict([[0.1]])
    with pytest.raises(ResultNotFinite):
        carousel.session("fragile", model="fragile").predict([[9.0]])
    with (
        Client(locked[0].url) as stranger,
        pytest.raises(NotAllowed, match="wants an API key"),
    ):
        stranger.session("refused").predict([[0.1]])
    assert pump.step == pump.where().step == 1


def test_a_full_server_is_waited_for(locked: tuple[Server, str]) -> None:
    """As long as it says; who may not wait is told at once, and nothing of his was run."""
    server, key = locked
    x = noise(4000, 1)
    refused: list[Overloaded] = []
    statuses: Counter[int] = Counter()

    def count(response: httpx.Response) -> None:
        statuses[response.status_code] += 1

    def once(n: int) -> int:
        pump = impatient.session(f"once-{n}", model=MODEL, step=0)
        try:
            return len(pump.predict(x))
        except Overloaded as error:
            refused.append(error)
            assert error.unacknowledged == ()
            return 0

    def patiently(n: int) -> int:
        return len(patient.session(f"patient-{n}", model=MODEL, step=0).predict(x))

    with (
        httpx.Client(event_hooks={"response": [count]}) as http,
        Client(server.url, api_key=key, retry_for_s=0) as impatient,
        Client(server.url, api_key=key, http=http) as patient,
        ThreadPoolExecutor(16) as pool,
    ):
        done = list(pool.map(once, range(16)))
        for n, steps in enumerate(done):
            if not steps:
                with pytest.raises(SessionNotFound):
                    patient.session(f"once-{n}").where()
        assert list(pool.map(patiently, range(8))) == [4000] * 8
    assert refused
    assert {error.data["limit"] for error in refused} <= {"queue", "tenant_queue"}
    assert all((error.retry_after_s or 0) >= 1 for error in refused)
    assert statuses[429] > 0


def test_a_forecast_is_the_same_through_cuts(locked: tuple[Server, str], carousel: Client) -> None:
    """Each line once, in order; the session stays."""
    pump = carousel.session("ahead", model=MODEL)
    pump.predict(noise(5, 1))
    expected = [(line.step, line.y.tolist()) for line in pump.forecast(200)]
    assert [step for step, _ in expected] == list(range(5, 205))
    server, key = locked
    with CuttingProxy(server.port, 9_000) as proxy, Client(proxy.url, api_key=key) as client:
        through = [(line.step, line.y.tolist()) for line in client.session("ahead").forecast(200)]
    assert through == expected
    assert pump.where().step == 5
    assert [line.step for line in carousel.forecast(3, [[0.1]], model=MODEL)] == [1, 2, 3]
    with pytest.raises(SessionNotFound):
        next(carousel.session("nobody").forecast(3))


# Streams ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stream_gives_what_calls_give(
    carousel: Client, models: dict[str, Model], transport: str
) -> None:
    """To the last digit; sent and read in turn, and in the order of its session."""
    x = noise(20, 1)
    pump = carousel.session(f"turns-{transport}", model=MODEL)
    with pump.stream(transport=transport) as stream:
        for row in x[:10]:
            stream.send(row[None])
            answer = stream.receive(10)
            assert isinstance(answer, Reply)
        with pytest.raises(RuntimeError, match="moved by an open stream"):
            pump.predict([[0.1]])
    y = pump.predict(x[10:])
    assert answer.y.tolist() == whole(models[MODEL], x)[9:10]
    assert y.tolist() == whole(models[MODEL], x)[10:]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_answer_comes_while_its_feed_waits(carousel: Client, transport: str) -> None:
    """As a sensor's does, which has the next row a second later."""
    answered = threading.Event()

    def sensor() -> Iterator[list[list[float]]]:
        for _ in range(3):
            answered.clear()
            yield [[0.1]]
            assert answered.wait(10)

    with carousel.session(f"sensor-{transport}", model=MODEL).stream(transport=transport) as stream:
        for reply in stream.feed(sensor()):
            assert isinstance(reply, Reply)
            answered.set()
    assert reply.step == 3


def test_what_a_feed_raises_is_raised_to_its_reader(carousel: Client) -> None:
    """After the answers to what it gave before."""

    def broken() -> Iterator[list[list[float]]]:
        yield [[0.1]]
        raise OSError("the sensor is off")

    read = []
    with (
        carousel.session("broken", model=MODEL).stream() as stream,
        pytest.raises(OSError, match="the sensor is off"),
    ):
        for reply in stream.feed(broken()):
            read.append(reply)
    assert len(read) == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_refused_request_stops_its_session_alone(carousel: Client, transport: str) -> None:
    """It is raised where answers are read; a session that is gone may be restarted."""
    bad = carousel.session(f"bad-{transport}", model="fragile")
    good = carousel.session(f"good-{transport}", model="fragile")
    with carousel.stream(transport=transport) as stream:
        stream.send(bad, [[9.0]])
        with pytest.raises(ResultNotFinite) as caught:
            stream.receive(10)
        assert [left.x for left in caught.value.unacknowledged] == [[[9.0]]]
        stream.send(good, [[0.1]])
        assert stream.receive(10).session_id == good.id
        with pytest.raises(ResultNotFinite):
            stream.send(bad, [[0.1]])
        stream.forget(bad.id)
        stream.send(bad, [[0.1]])
        assert stream.receive(10).step == 1
        carousel.session(bad.id).drop()
        stream.send(bad, [[0.2]])
        with pytest.raises(SessionGone):
            stream.receive(10)
        stream.forget(bad.id)
        bad.restart()
        stream.send(bad, [[0.2]])
        last = stream.receive(10)
    assert isinstance(last, Reply)
    assert last.created


def test_with_skip_refused_a_stream_goes_on(carousel: Client) -> None:
    """What was not run is given out in its place, also with several under way."""
    with carousel.session("skip", model="fragile").stream(skip_refused=True, in_flight=4) as stream:
        for value in (0.1, 9.0, 0.2, 0.3):
            stream.send([[value]])
        answers = list(stream)
    assert [type(answer) for answer in answers] == [Reply, NotRun, Reply, Reply]
    assert answers[-1].step == 3


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stream_without_a_key_is_refused(locked: tuple[Server, str], transport: str) -> None:
    """At once: nothing would come of trying again."""
    with Client(locked[0].url) as client:
        stream = client.stream(transport=transport)
        with pytest.raises(NotAllowed, match="API key"):
            stream.send(client.session("stranger", step=0), [[0.1]])
            stream.receive(10)
        stream.close()


def test_leaving_a_stream_waits_for_its_answers(carousel: Client) -> None:
    """And raises an error that nobody read."""
    pump = carousel.session("left", model=MODEL)
    with pump.stream() as stream:
        for _ in range(50):
            stream.send([[0.1]])
    assert pump.step == pump.where().step == 50
    with (
        pytest.raises(ResultNotFinite),
        carousel.session("left-bad", model="fragile").stream() as stream,
    ):
        stream.send([[9.0]])


# asyncio ----------------------------------------------------------------------------------------


def test_the_asyncio_client_does_the_same(
    locked: tuple[Server, str], models: dict[str, Model]
) -> None:
    """Calls, copies, forecasts and streams of either kind."""
    server, key = locked
    x = noise(8, 1)

    async def everything() -> list[list[float]]:
        y: list[list[float]] = []
        async with AsyncClient(server.url, api_key=key) as client:
            pump = client.session("async", model=MODEL)
            y += (await pump.predict(x[:2])).tolist()
            for transport, part in (("ws", x[2:4]), ("ndjson", x[4:6])):
                async with pump.stream(transport=transport) as stream:
                    async for reply in stream.feed(row[None] for row in part):
                        assert isinstance(reply, Reply)
                        y += reply.y.tolist()
            fork = await pump.fork()
            await fork.restore(await pump.snapshot(), replace=True)
            assert [line.step async for line in fork.forecast(2)] == [6, 7]
            y += (await fork.predict(x[6:])).tolist()
            await fork.drop()
            with pytest.raises(SessionNotFound):
                await fork.where()
            assert len((await client.models())["models"]) == 4
        return y

    assert asyncio.run(everything()) == whole(models[MODEL], x)


def test_a_cancelled_call_is_had_again(
    locked: tuple[Server, str], models: dict[str, Model]
) -> None:
    """The task ends at once; the request was run or not, and is run once."""
    server, key = locked
    x = noise(3000, 1)

    async def everything() -> list[list[float]]:
        y: list[list[float]] = []
        async with AsyncClient(server.url, api_key=key) as client:
            pump = client.session("cancelled", model=MODEL)
            for n in range(10):
                part = x[n * 300 : (n + 1) * 300]
                try:
                    async with asyncio.timeout(0.0005 * n):
                        y += (await pump.predict(part)).tolist()
                except TimeoutError:
                    y += (await pump.predict(part)).tolist()
            assert (await pump.where()).step == 3000
        return y

    assert asyncio.run(everything()) == whole(models[MODEL], x)


def test_a_cancelled_stream_ends_and_gives_its_session_back(locked: tuple[Server, str]) -> None:
    """What has no answer may be asked for again."""
    server, key = locked

    async def everything() -> None:
        async with AsyncClient(server.url, api_key=key) as client:
            pump = client.session("stopped", model=MODEL)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3), pump.stream() as stream:
                    await stream.send([[0.1]])
                    await stream.receive()
                    await stream.receive()
            assert (await pump.advance([[0.2]])).step == 2
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert len(names) == 1

    asyncio.run(everything())


# Other clients ----------------------------------------------------------------------------------


BENTOML = """
import asyncio, json, sys
import bentoml
from bentoml.exceptions import BentoMLException

url, token = sys.argv[1:]
with bentoml.SyncHTTPClient(url, token=token) as client:
    first = client.predict(session_id="bento", x=[[0.1], [0.2]], step=0, model="sine-cell")
    try:
        client.predict(session_id="bento", x=[[0.1]], step=9)
    except BentoMLException as error:
        refused = str(error)

async def go_on():
    async with bentoml.AsyncHTTPClient(url, token=token) as client:
        return await client.predict(session_id="bento", x=[[0.3], [0.4]], step=2)

print(json.dumps([first, asyncio.run(go_on()), refused]))
"""


def test_bentomls_own_clients(locked: tuple[Server, str], models: dict[str, Model]) -> None:
    """`predict` as BentoML's schema names it, blocking and asyncio; steps are kept."""
    done = subprocess.run(  # of itself bentoml warns of its dependencies
        [sys.executable, "-c", BENTOML, locked[0].url, locked[1]],
        capture_output=True,
        text=True,
        check=True,
    )
    first, second, refused = json.loads(done.stdout)
    assert first["y"] + second["y"] == whole(models[MODEL], np.array([[0.1], [0.2], [0.3], [0.4]]))
    assert (first["created"], second["created"], second["step"]) == (True, False, 4)
    assert "session `bento` stands at step 2, request says 9" in refused


def test_the_client_is_light() -> None:
    """It imports nothing that serves, and no pandas."""
    code = "import sys, service.client; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"bentoml", "onnxruntime", "pandas", "pydantic", "starlette", "torch", "uvicorn"}
    assert heavy.isdisjoint(done.stdout.split())
