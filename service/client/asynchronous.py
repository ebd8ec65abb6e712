"""The asyncio client: see `service.client` for its rules.

A task that is cancelled while it waits for an answer leaves its session as it was, and the request
without an answer: the same call again is safe, `resend` too.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeVar

import httpx

from service.client import place as sessions
from service.client.async_stream import AsyncSessionStream, AsyncStream
from service.client.channel import Channel
from service.client.forecasting import Ahead, Forecast
from service.client.patience import Patience
from service.client.place import OnGone, Place, Reply, Standing
from service.client.rows import read_rows
from service.client.talk import Call, Cut, Pause, Response, Talk, ask_json

Result = TypeVar("Result")


class AsyncClient:
    """`Client`, for asyncio; any number of tasks may use it at once."""

    def __init__(
        self,
        url: str = "http://localhost:3000",
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retry_for_s: float = 60.0,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        """As `Client`."""
        self.url = url.rstrip("/")
        self.headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self.patience = Patience(timeout_s, retry_for_s)
        self._http = http or httpx.AsyncClient()
        self._is_own = http is None

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections; sessions live on at the server."""
        if self._is_own:
            await self._http.aclose()

    def session(
        self,
        session_id: str,
        model: str | None = None,
        *,
        step: int | None = None,
        on_gone: OnGone = "raise",
    ) -> "AsyncSession":
        """As `Client.session`."""
        return AsyncSession(self, Place(session_id, model, step, on_gone))

    def stream(
        self,
        *,
        transport: str = "ws",
        in_flight: int = 1,
        buffer: int = 1024,
        skip_refused: bool = False,
    ) -> AsyncStream:
        """As `Client.stream`."""
        channel = Channel(self.patience, transport, in_flight, buffer, skip_refused)
        return AsyncStream(self, channel, transport)

    def forecast(
        self, horizon: int, x: Any, *, model: str | None = None, **options: Any
    ) -> AsyncIterator[Ahead]:
        """As `Client.forecast`."""
        forecast = Forecast(None, model, horizon, x, **options, patience=self.patience)
        return self.read_forecast(forecast)

    async def models(self) -> dict[str, Any]:
        """What is served, as GET /models says it."""
        body: dict[str, Any] = await self.run(ask_json(Call("GET", "/models"), self.patience))
        return body

    # For sessions and streams -------------------------------------------------------------------

    async def run(self, talk: Talk[Result]) -> Result:
        """Do what `talk` asks for, until it has its result."""
        outcome: Response | Cut | None = None
        while True:
            try:
                wanted = talk.send(outcome)
            except StopIteration as done:
                result: Result = done.value
                return result
            if isinstance(wanted, Pause):
                await asyncio.sleep(wanted.seconds)
                outcome = None
            else:
                outcome = await self._send(wanted)

    async def _send(self, call: Call) -> Response | Cut:
        try:
            response = await self._http.request(
                call.method, self.url + call.path, **self._options(call)
            )
        except httpx.RequestError as error:
            return Cut(error)
        return await _whole(response)

    async def read_forecast(self, forecast: Forecast) -> AsyncIterator[Ahead]:
        """Its lines, as they come, through cuts."""
        while not forecast.is_done:
            call = forecast.call
            try:
                async with self._http.stream(
                    call.method, self.url + call.path, **self._options(call)
                ) as response:
                    if response.status_code >= 400:
                        pause_s = forecast.refused(await _whole(response))
                    else:
                        async for line in response.aiter_lines():
                            ahead = forecast.read(line)
                            if ahead is not None:
                                yield ahead
                        pause_s = forecast.ended()
            except httpx.RequestError as error:
                pause_s = forecast.cut(error)
            await asyncio.sleep(pause_s)

    def _options(self, call: Call) -> dict[str, Any]:
        headers = {**self.headers, **call.headers}
        return {"content": call.body, "headers": headers, "timeout": call.timeout_s}


async def _whole(response: httpx.Response) -> Response:
    retry_after = response.headers.get("retry-after")
    return Response(response.status_code, retry_after, await response.aread())


class AsyncSession:
    """`Session`, for asyncio. Its requests go one after another, from whichever task they come."""

    def __init__(self, client: AsyncClient, place: Place) -> None:
        self._client = client
        self.place = place
        self._lock = asyncio.Lock()

    @property
    def id(self) -> str:
        return self.place.session_id

    @property
    def step(self) -> int | None:
        """Of the next row, as far as answers came; None: nothing was asked yet."""
        return self.place.step

    async def predict(self, x: Any) -> Any:
        """As `Session.predict`."""
        return (await self.advance(x)).y

    async def advance(
        self,
        x: Any,
        *,
        want: Sequence[str] | None = None,
        choose: Mapping[str, Any] | None = None,
    ) -> Reply:
        """As `Session.advance`."""
        rows = read_rows(x)
        return await self._run(sessions.advance(self.place, rows, want, choose, self._patience))

    async def resend(self) -> Reply | None:
        """As `Session.resend`."""
        return await self._run(sessions.resend(self.place, self._patience))

    async def where(self) -> Standing:
        """As `Session.where`."""
        return await self._client.run(sessions.look_up(self.place, self._patience))

    def forecast(
        self,
        horizon: int,
        x: Any = None,
        *,
        samples: int | None = None,
        seed: int | None = None,
        want: Sequence[str] | None = None,
        choose: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Ahead]:
        """As `Session.forecast`."""
        given = (samples, seed, want, choose)
        forecast = Forecast(self.id, self.place.model, horizon, x, *given, patience=self._patience)
        return self._client.read_forecast(forecast)

    def stream(self, **options: Any) -> AsyncSessionStream:
        """As `Session.stream`."""
        return AsyncSessionStream(self._client.stream(**options), self)

    async def fork(self, session_id: str | None = None) -> "AsyncSession":
        """As `Session.fork`."""
        place = await self._run(sessions.fork(self.place, session_id, self._patience))
        return AsyncSession(self._client, place)

    async def snapshot(self) -> bytes:
        """As `Session.snapshot`."""
        return await self._client.run(sessions.snapshot(self.place, self._patience))

    async def restore(self, snapshot: bytes, *, replace: bool = False) -> None:
        """As `Session.restore`."""
        await self._run(sessions.restore(self.place, snapshot, replace, self._patience))

    async def drop(self) -> None:
        """As `Session.drop`."""
        await self._run(sessions.drop(self.place, self._patience))

    async def restart(self) -> None:
        """As `Session.restart`."""
        await self._run(sessions.restart(self.place, self._patience))

    async def learn_step(self) -> int:
        """Where it is; asks the server if that is not known."""
        return await self._run(sessions.learn_step(self.place, self._patience))

    @property
    def _patience(self) -> Patience:
        return self._client.patience

    async def _run(self, talk: Talk[Result]) -> Result:
        async with self._lock:
            return await self._client.run(talk)
