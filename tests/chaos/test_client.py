"""The Python client while its connections are cut at random bytes, and the service is killed."""

import asyncio
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from service.client import AsyncClient, Client, Event, Lost, Reply, Unreachable
from service.model import Model
from tests.chaos.conftest import disk
from tests.chaos.cutting import CuttingProxy
from tests.chaos.servers import Service

pytestmark = pytest.mark.slow
Fed = list[tuple[str, list[list[float]]]]  # session and x, in the order in which they are sent

STEPS = 3000
SESSIONS = 8


@pytest.fixture(scope="module")
def carousel(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service on the disk store."""
    directory = tmp_path_factory.mktemp("client")
    one = Service(directory, {"CAROUSEL_ARTIFACTS": str(artifacts), **disk(directory, workers=1)})
    one.start()
    try:
        one.running.wait_until_it_listens()
        yield one
    finally:
        one.stop()


def rows(name: str, steps: int = STEPS) -> Fed:
    """Chunks of one to three rows, of sessions drawn at random."""
    rng = random.Random(name)
    fed: Fed = []
    while sum(len(x) for _, x in fed) < steps:
        x = [[rng.gauss(0, 1)] for _ in range(rng.choice([1, 1, 1, 3]))]
        fed.append((f"{name}-{rng.randrange(SESSIONS)}", x))
    return fed


def plain_loop(model: Model, fed: Fed) -> dict[str, list[list[list[float]]]]:
    """What each session's chunks give, one after another: the numbers as JSON has them."""
    states: dict[str, bytes] = {}
    found: dict[str, list[list[list[float]]]] = defaultdict(list)
    for name, x in fed:
        before = states.get(name, model.initial_state)
        (y,), (states[name],), _ = model.run([model.encode(np.array(x))], [before])
        found[name].append([[float(str(value)) for value in row] for row in model.decode(y)])
    return found


def judge(model: Model, fed: Fed, events: list[Event], url: str) -> int:
    """Compare each answer with a plain loop's, digit for digit; how many were lost."""
    expected, lost = plain_loop(model, fed), 0
    answers: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        answers[event.session_id].append(event)
    with Client(url) as client:
        for name, chunks in expected.items():
            assert len(answers[name]) == len(chunks)
            for answer, y in zip(answers[name], chunks, strict=True):
                if isinstance(answer, Reply):
                    assert answer.y.tolist() == y
                lost += isinstance(answer, Lost)
            steps = sum(len(y) for y in chunks)
            assert client.session(name).where().step == steps
    return lost


def direct(carousel: Service) -> str:
    return f"http://127.0.0.1:{carousel.port}"


@pytest.mark.parametrize("transport", ["ws", "ndjson"])
def test_a_stream_that_is_cut_at_any_byte_loses_and_doubles_nothing(
    carousel: Service, model: Model, transport: str
) -> None:
    """Thousands of steps of several sessions, a cut every hundred or so; each answer is right."""
    fed = rows(f"cut-{transport}")
    with (
        CuttingProxy(carousel.port, 40_000) as proxy,
        Client(proxy.url) as client,
        client.stream(transport=transport) as stream,
    ):
        events = list(stream.feed(fed))
    print(f"{proxy.cuts} cuts")
    assert proxy.cuts > 10
    assert judge(model, fed, events, direct(carousel)) == 0


@pytest.mark.parametrize("transport", ["ws", "ndjson"])
def test_an_asyncio_stream_that_is_cut_loses_and_doubles_nothing(
    carousel: Service, model: Model, transport: str
) -> None:
    """The same, driven by tasks."""
    fed = rows(f"async-{transport}")

    async def whole(url: str) -> list[Event]:
        async with AsyncClient(url) as client, client.stream(transport=transport) as stream:
            return [event async for event in stream.feed(fed)]

    with CuttingProxy(carousel.port, 40_000) as proxy:
        events = asyncio.run(whole(proxy.url))
    assert proxy.cuts > 10
    assert judge(model, fed, events, direct(carousel)) == 0


def test_with_more_under_way_what_is_lost_is_said(carousel: Service, model: Model) -> None:
    """Every row is run once all the same, and every answer that came is right."""
    fed = rows("window")
    with (
        CuttingProxy(carousel.port, 40_000) as proxy,
        Client(proxy.url) as client,
        client.stream(in_flight=8) as stream,
    ):
        events = list(stream.feed(fed))
    lost = judge(model, fed, events, direct(carousel))
    print(f"{proxy.cuts} cuts, {lost} answers lost")
    assert lost > 0


def test_calls_that_are_cut_are_answered_once(carousel: Service, model: Model) -> None:
    """POST /predict from several threads, a session each."""
    fed = rows("unary", 600)
    names = sorted({name for name, _ in fed})
    with CuttingProxy(carousel.port, 8_000) as proxy, Client(proxy.url) as client:

        def drive(name: str) -> list[Event]:
            session = client.session(name)
            return [session.advance(x) for whose, x in fed if whose == name]

        with ThreadPoolExecutor(len(names)) as pool:
            events = [event for each in pool.map(drive, names) for event in each]
    assert proxy.cuts > 10
    assert judge(model, fed, events, direct(carousel)) == 0


def test_a_stream_goes_on_over_a_service_that_is_killed_and_started_again(
    carousel: Service, model: Model
) -> None:
    """SIGKILL of all of it, twice, in the middle; nobody tells the client."""
    fed = rows("killed")
    seen = threading.Event()
    events: list[Event] = []

    def stream() -> None:
        def slowly() -> Iterator[tuple[str, list[list[float]]]]:
            for row in fed:
                yield row
                time.sleep(0.001)

        with Client(direct(carousel), timeout_s=5) as client, client.stream() as stream:
            for event in stream.feed(slowly()):
                events.append(event)
                seen.set()

    with ThreadPoolExecutor(1) as pool:
        streaming = pool.submit(stream)
        for _ in range(2):
            seen.wait(20)
            time.sleep(0.2)
            carousel.kill()
            assert not streaming.done()
            carousel.start()
            carousel.running.wait_until_it_listens()
            seen.clear()
        streaming.result(60)
    assert judge(model, fed, events, direct(carousel)) == 0


def test_a_server_that_stays_away_is_given_up_and_what_has_no_answer_is_said() -> None:
    """Of a call and of a stream."""
    with Client("http://127.0.0.1:9", retry_for_s=0.3) as client:
        with pytest.raises(Unreachable, match="ConnectError") as caught:
            client.session("away", step=3).predict([[0.1]])
        (left,) = caught.value.unacknowledged
        assert (left.session_id, left.step, left.x) == ("away", 3, [[0.1]])
        stream = client.stream()
        stream.send(client.session("away", step=3), [[0.1]])
        with pytest.raises(Unreachable, match="1 requests of it have none") as caught:
            stream.receive()
        assert len(caught.value.unacknowledged) == 1
        stream.close()
