"""The routes of forks and snapshots, and of promotion.

    POST /sessions/{id}/fork       {session_id?, step?}: copy it, to that id or to one made here;
                                   with an Idempotency-Key, a retry finds the copy it made
    GET  /sessions/{id}/snapshot   download it: a signed safetensors file
    PUT  /sessions/{id}/snapshot   begin it from such a file; ?replace=true over the one there
    POST /models/{name}/promote    {from?, to?}: move the sessions of one version to another

Bodies of POST may be empty. Fields and parameters that are not these are refused. Promotion changes
the server for all tenants: whoever routes to it has seen that the caller may.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec

from service.copying import fork, restore, take_snapshot
from service.engine import Engine
from service.errors import InvalidJsonError, RequestError
from service.key_ring import Caller
from service.protocols.asgi import Receive, Scope, Send, read_body, send_bytes, send_json
from service.protocols.idempotency import idempotency_key_of
from service.session import Record, SessionKey
from service.snapshot import Keyring
from service.wire import MAX_SESSION_ID_CHARS, MAX_STEP, encode

SESSIONS, SESSION = "/sessions/", "/sessions/{id}"
FORK, SNAPSHOT = "/fork", "/snapshot"
MODELS, PROMOTE = "/models/", "/promote"
PROMOTION = "/models/{name}/promote"
SNAPSHOT_TYPE = b"application/octet-stream"

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
Body = TypeVar("Body", bound="_Body")


class _Body(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A body whose every field may be absent."""


class ForkBody(_Body, frozen=True):
    session_id: (
        Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_SESSION_ID_CHARS)] | None
    ) = None
    step: Annotated[int, msgspec.Meta(ge=0, le=MAX_STEP)] | None = None


class PromotionBody(_Body, frozen=True, rename={"source": "from"}):
    source: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    to: Annotated[str, msgspec.Meta(min_length=1)] | None = None


class CopyRoutes:
    """The handlers over one engine."""

    def __init__(
        self,
        engine: Engine,
        keyring: Keyring,
        max_body_bytes: int,
        caller_of: Callable[[Scope], Caller],
    ) -> None:
        self._engine = engine
        self._keyring = keyring
        self._max_body_bytes = max_body_bytes
        self._caller_of = caller_of
        self.routes: dict[str, dict[str, Handler]] = {
            SESSION + FORK: {"POST": self._fork},
            SESSION + SNAPSHOT: {"GET": self._snapshot, "PUT": self._restore},
            PROMOTION: {"POST": self._promote},
        }

    async def _fork(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _decode(await read_body(scope, receive, self._max_body_bytes), ForkBody)
        most = self._caller_of(scope).max_sessions
        source = self._key_of(scope)
        idempotency_key = idempotency_key_of(scope["headers"])
        key, record = await fork(
            self._engine, source, body.session_id, body.step, most, idempotency_key
        )
        reply = {**describe_session(key, record), "forked_from": source.session_id}
        await send_json(send, encode(reply))

    async def _snapshot(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = self._key_of(scope)
        file = await take_snapshot(self._engine, key, self._keyring, datetime.now(UTC))
        await send_bytes(send, file, SNAPSHOT_TYPE)

    async def _restore(self, scope: Scope, receive: Receive, send: Send) -> None:
        replace = _replace_of(scope)
        key = self._key_of(scope)
        if len(key.session_id) > MAX_SESSION_ID_CHARS:
            raise RequestError(
                f"the session id has {len(key.session_id)} characters, expected at most "
                f"{MAX_SESSION_ID_CHARS}"
            )
        raw = await read_body(scope, receive, self._max_body_bytes)
        most = self._caller_of(scope).max_sessions
        before, record = await restore(self._engine, key, raw, self._keyring, replace, most)
        reply = {**describe_session(key, record), "replaced": before is not None}
        await send_json(send, encode(reply))

    async def _promote(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _decode(await read_body(scope, receive, self._max_body_bytes), PromotionBody)
        name = unquote(raw_path(scope)[len(MODELS) : -len(PROMOTE)])
        moved = await self._engine.promote(name, body.source, body.to)
        reply = {"model": name, "from": moved.sources, "to": moved.to, "refused": moved.refused}
        await send_json(send, encode(reply))

    def _key_of(self, scope: Scope) -> SessionKey:
        return SessionKey(self._caller_of(scope).tenant, session_id_of(scope))


def describe_session(key: SessionKey, record: Record) -> dict[str, object]:
    return {
        "session_id": key.session_id,
        "model": record.model,
        "version": record.version,
        "step": record.step,
    }


def raw_path(scope: Scope) -> str:
    """The path as the client wrote it: an encoded slash is not a separator."""
    raw = scope.get("raw_path") or scope["path"].encode()
    return str(raw.decode("latin-1").partition("?")[0])


def route_of(path: str) -> str:
    """The route of a path; of one that is none of those with an id or a name, the path itself."""
    tail = path.removeprefix(SESSIONS)
    if tail not in (path, ""):
        for verb in (FORK, SNAPSHOT):
            if tail.endswith(verb) and tail != verb:
                return SESSION + verb
        return SESSION
    name = path.removeprefix(MODELS).removesuffix(PROMOTE)
    if path == f"{MODELS}{name}{PROMOTE}" and name and "/" not in name:
        return PROMOTION
    return path


def session_id_of(scope: Scope) -> str:
    """What follows /sessions/, without /fork or /snapshot."""
    path = raw_path(scope)
    tail = path[len(SESSIONS) :]
    verb = route_of(path).removeprefix(SESSION)
    return unquote(tail.removesuffix(verb))


def _replace_of(scope: Scope) -> bool:
    parameters = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    for name, value in parameters:
        if name != "replace" or value not in ("true", "false"):
            raise RequestError(
                f"the address has `{name}={value}`, expected `replace=true` or nothing"
            )
    return ("replace", "true") in parameters


def _decode(body: bytes, kind: type[Body]) -> Body:
    fields = ", ".join(f"{field}?" for field in kind.__struct_encode_fields__)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise RequestError(f"{error}; expected {{{fields}}}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJsonError(f"the body is not JSON: {error}; expected {{{fields}}}") from error
