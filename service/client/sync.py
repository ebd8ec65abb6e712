"""The blocking client: see `service.client` for its rules."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import httpx

from service.client import place as sessions
from service.client.channel import Channel
from service.client.forecasting import Ahead, Forecast
from service.client.patience import Patience
from service.client.place import OnGone, Place, Reply, Standing
from service.client.rows import read_rows
from service.client.sync_stream import SessionStream, Stream
from service.client.talk import Call, Cut, Pause, Response, Talk, ask_json

Result = TypeVar("Result")


class Client:
    """A Carousel service, asked by blocking calls; several threads may use it at once."""

    def __init__(
        self,
        url: str = "http://localhost:3000",
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retry_for_s: float = 60.0,
        http: httpx.Client | None = None,
    ) -> None:
        """
        Args:
            url: of the service.
            api_key: where it wants one.
            timeout_s: how long one try may wait for the server.
            retry_for_s: how long to try again in all; 0: never.
            http: sends the calls (not the streams) instead of a client of its own: for proxies,
                certificates, other transports. It is the caller's to close.
        """
        self.url = url.rstrip("/")
        self.headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self.patience = Patience(timeout_s, retry_for_s)
        self._http = http or httpx.Client()
        self._is_own = http is None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections; sessions live on at the server."""
        if self._is_own:
            self._http.close()

    def session(
        self,
        session_id: str,
        model: str | None = None,
        *,
        step: int | None = None,
        on_gone: OnGone = "raise",
    ) -> "Session":
        """One session; nothing is asked yet.

        Args:
            model: `name` or `name:version`; None: the session's own, or the server's default.
            step: of the next row; None: where the server holds the session, or 0 if it does not;
                0: the session must not have begun.
            on_gone: what to do once the server holds the session no more: raise `SessionGone`, or
                "restart": begin it anew with the request that found out.
        """
        return Session(self, Place(session_id, model, step, on_gone))

    def stream(
        self,
        *,
        transport: str = "ws",
        in_flight: int = 1,
        buffer: int = 1024,
        skip_refused: bool = False,
    ) -> Stream:
        """Many sessions over one connection, see `Stream`.

        Args:
            transport: "ws", or "ndjson": one POST /stream, which some proxies keep back.
            in_flight: requests of one session under way at a time. More than 1 is faster for few
                sessions far away, and then a cut may lose answers (`Lost`).
            buffer: requests without an answer.
            skip_refused: a request that is refused for good does not stop its session.
        """
        channel = Channel(self.patience, transport, in_flight, buffer, skip_refused)
        return Stream(self, channel, transport)

    def forecast(
        self, horizon: int, x: Any, *, model: str | None = None, **options: Any
    ) -> Iterator[Ahead]:
        """What `model` would go on with after `x`, without a session; as `Session.forecast`."""
        forecast = Forecast(None, model, horizon, x, **options, patience=self.patience)
        return self.read_forecast(forecast)

    def models(self) -> dict[str, Any]:
        """What is served, as GET /models says it."""
        body: dict[str, Any] = self.run(ask_json(Call("GET", "/models"), self.patience))
        return body

    # For sessions and streams -------------------------------------------------------------------

    def run(self, talk: Talk[Result]) -> Result:
        """Do what `talk` asks for, until it has its result."""
        outcome: Response | Cut | None = None
        while True:
            try:
                wanted = talk.send(outcome)
            except StopIteration as done:
                result: Result = done.value
                return result
            if isinstance(wanted, Pause):
                time.sleep(wanted.seconds)
                outcome = None
            else:
                outcome = self._send(wanted)

    def _send(self, call: Call) -> Response | Cut:
        try:
            response = self._http.request(call.method, self.url + call.path, **self._options(call))
        except httpx.RequestError as error:
            return Cut(error)
        return _whole(response)

    def read_forecast(self, forecast: Forecast) -> Iterator[Ahead]:
        """Its lines, as they come, through cuts."""
        while not forecast.is_done:
            call = forecast.call
            try:
                with self._http.stream(
                    call.method, self.url + call.path, **self._options(call)
                ) as response:
                    if response.status_code >= 400:
                        pause_s = forecast.refused(_whole(response))
                    else:
                        for line in response.iter_lines():
                            ahead = forecast.read(line)
                            if ahead is not None:
                                yield ahead
                        pause_s = forecast.ended()
            except httpx.RequestError as error:
                pause_s = forecast.cut(error)
            time.sleep(pause_s)

    def _options(self, call: Call) -> dict[str, Any]:
        headers = {**self.headers, **call.headers}
        return {"content": call.body, "headers": headers, "timeout": call.timeout_s}


def _whole(response: httpx.Response) -> Response:
    retry_after = response.headers.get("retry-after")
    return Response(response.status_code, retry_after, response.read())


class Session:
    """One session, as `Client.session` makes it.

    Its requests go one after another, from whichever thread they come.
    """

    def __init__(self, client: Client, place: Place) -> None:
        self._client = client
        self.place = place
        self._lock = threading.Lock()

    @property
    def id(self) -> str:
        return self.place.session_id

    @property
    def step(self) -> int | None:
        """Of the next row, as far as answers came; None: nothing was asked yet."""
        return self.place.step

    def predict(self, x: Any) -> Any:
        """Advance by the rows of `x`.

        Args:
            x: (T, ...) in raw units: numpy, lists, DataFrame, Series (one column), or text.
        Returns:
            y (T, ...) in raw units; of pandas, pandas with the same index.
        Raises:
            CallError: see `service.client.errors`; the session stays. After one that has
                `unacknowledged` the same `predict` again is safe.
        """
        return self.advance(x).y

    def advance(
        self,
        x: Any,
        *,
        want: Sequence[str] | None = None,
        choose: Mapping[str, Any] | None = None,
    ) -> Reply:
        """`predict`, with all that the reply says.

        Args:
            want: fields of the reply (`y`, `text`, `labels`, ..); None: all.
            choose: how a token is chosen, as POST /predict takes it.
        """
        rows = read_rows(x)
        return self._run(sessions.advance(self.place, rows, want, choose, self._patience))

    def resend(self) -> Reply | None:
        """The answer of the last request, which had none; None: every request was answered."""
        return self._run(sessions.resend(self.place, self._patience))

    def where(self) -> Standing:
        """Where the server holds it; SessionNotFound if it does not."""
        return self._client.run(sessions.look_up(self.place, self._patience))

    def forecast(
        self,
        horizon: int,
        x: Any = None,
        *,
        samples: int | None = None,
        seed: int | None = None,
        want: Sequence[str] | None = None,
        choose: Mapping[str, Any] | None = None,
    ) -> Iterator[Ahead]:
        """What it would go on with; it stays where it is. As POST /forecast says."""
        given = (samples, seed, want, choose)
        forecast = Forecast(self.id, self.place.model, horizon, x, *given, patience=self._patience)
        return self._client.read_forecast(forecast)

    def stream(self, **options: Any) -> SessionStream:
        """Its rows over one connection, see `Stream`; `options` as `Client.stream` has them."""
        return SessionStream(self._client.stream(**options), self)

    def fork(self, session_id: str | None = None) -> "Session":
        """A copy that goes its own way from here, under that id or one made here."""
        place = self._run(sessions.fork(self.place, session_id, self._patience))
        return Session(self._client, place)

    def snapshot(self) -> bytes:
        """The whole of it, signed, for `restore` here or at another server."""
        return self._client.run(sessions.snapshot(self.place, self._patience))

    def restore(self, snapshot: bytes, *, replace: bool = False) -> None:
        """Begin it from a snapshot; over the one there only with `replace`."""
        self._run(sessions.restore(self.place, snapshot, replace, self._patience))

    def drop(self) -> None:
        """Forget it; SessionNotFound if there is none."""
        self._run(sessions.drop(self.place, self._patience))

    def restart(self) -> None:
        """Forget it, if it is there: the next request begins it anew, at step 0."""
        self._run(sessions.restart(self.place, self._patience))

    def learn_step(self) -> int:
        """Where it is; asks the server if that is not known."""
        return self._run(sessions.learn_step(self.place, self._patience))

    @property
    def _patience(self) -> Patience:
        return self._client.patience

    def _run(self, talk: Talk[Result]) -> Result:
        with self._lock:
            return self._client.run(talk)
