"""Promotion: which version the live sessions of another version move to.

Rules
- Versions may be promoted between if their ports are the same: of x, y and every state the name,
  dtype and shape. A state of one is then a state of the other, and clients need not change.
- A promotion is recorded in the store of the sessions, so that every worker and machine that
  shares the sessions shares it. It moves no session by itself: a session moves with its next
  request, in the commit of that request.
- A promotion back undoes the one that it reverses. A version that sessions move away from may be
  one that others were moving to: they go all the way.
- What a server knows of promotions is as old as its last `refresh`. One that does not know yet
  runs a session where it stands, and moves none back.

How it works: one record of the store for each model name, under a tenant of its own, whose state
is JSON: {from: to}. Stores forget what is idle, so `refresh` renews it while a server runs. When
all servers have been down for the idle timeout less `renew_s` it may be forgotten; the sessions
that it has not moved then stay where they are.
"""

import json
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from service.catalog import Catalog
from service.errors import ArtifactError, CapacityError, IncompatibleError, RequestError
from service.manifest import Ports
from service.model import Model
from service.session import CONTROL, LastReply, Record, SessionKey
from service.store import Commit, Outcome, Store

logger = logging.getLogger("carousel.promotion")


@dataclass(frozen=True)
class Promoted:
    """What came of one call."""

    sources: list[str]  # versions whose sessions move
    to: str
    refused: list[dict[str, object]]  # of other versions: {from, ports}, the ports that differ


class Promotions:
    """What is promoted, as far as this process knows."""

    def __init__(
        self,
        store: Store,
        renew_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`renew_s`: a fraction of the store's idle timeout."""
        self._store = store
        self._renew_s = renew_s
        self._clock = clock
        self._moves: dict[str, dict[str, str]] = {}  # name -> from -> to
        self._seen: dict[str, tuple[Record, float]] = {}  # name -> its record, and since when

    def goal(self, record: Record) -> str:
        """The version that the session's next request runs on."""
        moves = self._moves.get(record.model)
        return record.version if moves is None else follow(moves, record.version)

    def moves(self, name: str, version: str) -> bool:
        """Whether the sessions of this version move to another."""
        return version in self._moves.get(name, ())

    def moves_of(self, name: str) -> dict[str, str]:
        """version -> where its sessions go."""
        moves = self._moves.get(name, {})
        return {version: follow(moves, version) for version in moves}

    async def add(self, name: str, sources: Iterable[str], to: str) -> None:
        """Move the sessions of `sources` to version `to` from now on.

        Raises:
            CapacityError: the store takes no more records.
        """
        key = _key(name)
        while True:
            (before,) = await self._store.get([key])
            moves = with_move(_read(before), sources, to)
            after = self._write(name, before, moves)
            (outcome,) = await self._store.commit([Commit(key, before, after)])
            if outcome is Outcome.DONE:
                self._note(name, after)
                return
            if outcome is not Outcome.LOST:
                raise CapacityError("the store is full of sessions and cannot note a promotion")

    async def refresh(self, names: Iterable[str]) -> None:
        """Learn what others promoted, and keep what is known from being forgotten."""
        names = list(names)
        for name, record in zip(names, await self._store.get(list(map(_key, names))), strict=True):
            if record is None:
                self._moves.pop(name, None)
                self._seen.pop(name, None)
                continue
            self._note(name, record)
            if self._clock() - self._seen[name][1] > self._renew_s:
                after = self._write(name, record, _read(record))
                commit = Commit(_key(name), record, after)
                if await self._store.commit([commit]) == [Outcome.DONE]:
                    self._note(name, after)

    def _note(self, name: str, record: Record) -> None:
        known = self._seen.get(name)
        if known is not None and known[0] == record:
            return
        self._seen[name] = record, self._clock()
        moves = _read(record)
        if moves != self._moves.get(name):
            logger.info("sessions of %s move: %s", name, moves)
        self._moves[name] = moves

    def _write(self, name: str, before: Record | None, moves: Mapping[str, str]) -> Record:
        birth, step = (before.birth, before.step + 1) if before else (random.getrandbits(63), 1)
        none = LastReply(step=0, digest=b"", y=b"", created=False)
        return Record(birth, name, "", step, json.dumps(moves).encode(), none)


async def promote(
    catalog: Catalog,
    load: Callable[[str], Awaitable[Model]],
    promotions: Promotions,
    name: str,
    source: str | None,
    to: str | None,
) -> Promoted:
    """Move the sessions of `source`, or of every other version, to `to`, or to the newest.

    Raises:
        IncompatibleError: no version's sessions can move; the ports that differ.
        UnknownModelError: there is no such model or version.
        RequestError: there is nothing to promote.
        CapacityError: the store is full.
    """
    target = await load(name if to is None else f"{name}:{to}")
    catalog.for_new(target.reference)  # or it was taken away
    others = [v for v in catalog.versions_of(name) if v != target.version]
    sources = others if source is None else [source]
    if not sources or source == target.version:
        raise RequestError(
            f"nothing to promote to {target.reference}: expected `from` to be one of {others}"
        )
    refused: list[IncompatibleError] = []
    movable: list[str] = []
    for version in sources:
        try:
            require_same_ports((await load(f"{name}:{version}")), target)
            movable.append(version)
        except IncompatibleError as error:
            refused.append(error)
        except ArtifactError:
            if source is not None:
                raise
    if refused and not movable:
        raise refused[-1]  # of several, the newest
    await promotions.add(name, movable, target.version)
    shown = [{"from": error.data["source"], "ports": error.data["ports"]} for error in refused]
    return Promoted(movable, target.version, shown)


def follow(moves: Mapping[str, str], version: str) -> str:
    while version in moves:
        version = moves[version]
    return version


def with_move(moves: Mapping[str, str], sources: Iterable[str], to: str) -> dict[str, str]:
    """`moves` and from each of `sources` to `to`; nothing leaves `to`, so there is no circle."""
    added = {**moves, **dict.fromkeys(sources, to)}
    added.pop(to, None)
    return added


def require_same_ports(source: Model, target: Model) -> None:
    """IncompatibleError, with the ports that differ, if no state of one is a state of the other."""
    ours, theirs = (describe_ports(m.artifact.manifest.ports) for m in (source, target))
    differing = [
        {"port": port, "from": ours.get(port), "to": theirs.get(port)}
        for port in sorted(ours.keys() | theirs.keys())
        if ours.get(port) != theirs.get(port)
    ]
    if differing:
        said = "; ".join(f"`{d['port']}` is {d['from']} and {d['to']}" for d in differing)
        raise IncompatibleError(
            f"sessions of {source.reference} cannot move to {target.version}: {said}; let them "
            "end where they are",
            model=source.name,
            source=source.version,
            to=target.version,
            ports=differing,
        )


def describe_ports(ports: Ports) -> dict[str, str]:
    """port -> `float32 (B, 1, 8)`; states by their name."""
    named = {"x": ports.x, "y": ports.y, **{state.name: state for state in ports.states}}
    return {name: f"{p.dtype} ({', '.join(map(str, p.shape))})" for name, p in named.items()}


def _key(name: str) -> SessionKey:
    return SessionKey(CONTROL, name)


def _read(record: Record | None) -> dict[str, str]:
    return {} if record is None else dict(json.loads(record.state))
