"""Who answers which path: our routes by our own app, the rest by the host's.

The host is BentoML's Starlette app. Its middlewares cost a request several times what ours costs
in all, label metrics by the raw path (each session id would become a time series that is never
freed), and put a timer on every request; so our routes are answered before them. The host keeps
its health, metrics and documentation pages. What it does not know either is refused in our shape.
"""

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.routing import Match, Route

from service.protocols.asgi import Receive, Scope, Send, send_error
from service.protocols.native import NativeApp, no_method, no_route


class Front:
    """An ASGI app over the host's and ours; the host keeps the lifespan."""

    def __init__(self, host: Starlette, native: Callable[[], NativeApp]) -> None:
        """`native` is asked at each request: our app exists once the host has started."""
        self._host = host
        self._native = native

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._host(scope, receive, send)
            return
        native = self._native()
        if native.knows(scope["path"]):
            await native(scope, receive, send)
            return
        if scope["path"] == "/metrics":
            await native.before_metrics()
        allowed: set[str] = set()
        for route in self._host.routes:
            match, _ = route.matches(scope)
            if match is Match.FULL:
                await self._host(scope, receive, send)
                return
            if match is Match.PARTIAL and isinstance(route, Route):
                allowed |= route.methods or set()
        await self._refuse(scope, send, sorted(allowed))

    async def _refuse(self, scope: Scope, send: Send, allowed: list[str]) -> None:
        path, method = scope["path"], scope["method"]
        if allowed:
            headers = [(b"allow", ", ".join(allowed).encode())]
            await send_error(send, no_method(path, method, allowed), headers)
        else:
            await send_error(send, no_route(path))
