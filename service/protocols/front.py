"""Who answers which path: our routes by our own app, the rest by the host's.

The host is BentoML's Starlette app. Its middlewares cost a request several times what ours costs
in all, label metrics by the raw path (each session id would become a time series that is never
freed), and put a timer on every request; so our routes are answered before them. The host keeps
its health, metrics and documentation pages. What it does not know either is refused in our shape.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from starlette.applications import Starlette
from starlette.routing import Match, Route

from service.protocols.around import Around
from service.protocols.asgi import Receive, Scope, Send, send_error
from service.protocols.native import no_method, no_route


class OwnApp(Protocol):
    """Routes of ours, of one protocol."""

    def knows(self, scope: Scope) -> bool:
        """Whether this HTTP request or WebSocket is for it."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


@dataclass(frozen=True)
class OwnApps:
    """All that is answered before the host."""

    apps: Sequence[OwnApp]  # the first that knows a request answers it
    before_metrics: Callable[[], Awaitable[None]]  # what must be known when /metrics is asked
    around: Around = field(default_factory=Around)  # what all their replies have


class Front:
    """An ASGI app over the host's and ours; the host keeps the lifespan."""

    def __init__(
        self, host: Starlette, own: Callable[[], OwnApps], at_start: Callable[[Receive], None]
    ) -> None:
        """
        Args:
            own: asked at each request: our apps exist once the host has started.
            at_start: called with the `receive` of the lifespan, before there is a connection.
        """
        self._host = host
        self._own = own
        self._at_start = at_start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            self._at_start(receive)
            await self._host(scope, receive, send)
            return
        own = self._own()
        for app in own.apps:
            if app.knows(scope):
                await own.around.answer(app, scope, receive, send)
                return
        if scope["type"] == "websocket":
            await self._host(scope, receive, send)
            return
        if scope["path"] == "/metrics":
            await own.before_metrics()
        allowed: set[str] = set()
        for route in self._host.routes:
            match, _ = route.matches(scope)
            if match is Match.FULL:
                await self._host(scope, receive, send)
                return
            if match is Match.PARTIAL and isinstance(route, Route):
                allowed |= route.methods or set()
        await own.around.answer(partial(_refuse, sorted(allowed)), scope, receive, send)


async def _refuse(allowed: list[str], scope: Scope, receive: Receive, send: Send) -> None:
    path, method = scope["path"], scope["method"]
    if allowed:
        headers = [(b"allow", ", ".join(allowed).encode())]
        await send_error(send, no_method(path, method, allowed), headers)
    else:
        await send_error(send, no_route(path))
