"""The header Idempotency-Key, alone and through the routes that take it."""

from collections.abc import Awaitable, Callable

import httpx
import pytest

from service.catalog import Catalog
from service.errors import RequestError
from service.model import Model
from service.protocols.idempotency import idempotency_key_of
from service.protocols.native import NativeApp
from tests.service.test_engine import run, running
from tests.service.test_native import LINE, MAX_BODY_BYTES, body_of

UUID = "8e03978e-40d5-43dd-bc93-6894a57f9324"


def with_client(catalog: Catalog, use: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with running(catalog) as engine:
            transport = httpx.ASGITransport(NativeApp(engine, MAX_BODY_BYTES))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                await use(client)

    run(scenario())


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (UUID, UUID),
        (f'"{UUID}"', f'"{UUID}"'),  # as the draft writes it; kept as it came
        ("a", "a"),
        ("x" * 255, "x" * 255),
        ("  two words ", "two words"),
    ],
)
def test_a_key_is_kept_as_it_came(value: str, key: str) -> None:
    """Up to 255 printable characters."""
    assert idempotency_key_of([(b"host", b"x"), (b"idempotency-key", value.encode())]) == key
    assert idempotency_key_of([(b"host", b"x")]) is None


@pytest.mark.parametrize("value", [b"", b"  ", b"x" * 256, b"a\tb", b"\x00", "é".encode(), b"\xff"])
def test_what_is_no_key_is_refused(value: bytes) -> None:
    """Empty, too long, or not printable."""
    with pytest.raises(RequestError, match="expected 1 to 255, all of them printable ASCII"):
        idempotency_key_of([(b"idempotency-key", value)])


def test_two_keys_are_refused() -> None:
    """Which one would it be?"""
    with pytest.raises(RequestError, match="there are 2 headers Idempotency-Key, expected one"):
        idempotency_key_of([(b"idempotency-key", b"a"), (b"idempotency-key", b"a")])


def test_a_retry_with_its_key_is_answered_byte_for_byte(sine: Model) -> None:
    """And moves nothing; other rows under the key are 422, and another key runs."""

    async def use(client: httpx.AsyncClient) -> None:
        headers = {"Idempotency-Key": f'"{UUID}"'}
        first = await client.post("/predict", json=LINE, headers=headers)
        assert first.json()["created"] is True
        for _ in range(2):
            again = await client.post("/predict", json=LINE, headers=headers)
            assert (again.status_code, again.content) == (200, first.content)
        other = await client.post("/predict", json={**LINE, "x": [[0.25]]}, headers=headers)
        assert (other.status_code, body_of(other)["code"]) == (422, "idempotency_conflict")
        assert body_of(other)["step"] == 1
        new = await client.post("/predict", json=LINE, headers={"Idempotency-Key": "another"})
        assert new.json()["step"] == 2
        bad = await client.post("/predict", json=LINE, headers={"Idempotency-Key": "x" * 256})
        assert (bad.status_code, body_of(bad)["code"]) == (400, "invalid_request")
        assert (await client.get("/sessions/s")).json()["step"] == 2

    with_client(Catalog([sine]), use)


def test_a_fork_with_a_key_is_answered_the_same_again(sine: Model) -> None:
    """The same new session id, and no second copy."""

    async def use(client: httpx.AsyncClient) -> None:
        await client.post("/predict", json=LINE)
        headers = {"Idempotency-Key": UUID}
        first = await client.post("/sessions/s/fork", headers=headers)
        assert first.status_code == 200
        again = await client.post("/sessions/s/fork", headers=headers)
        assert (again.status_code, again.content) == (200, first.content)
        other = await client.post("/sessions/s/fork")
        assert other.json()["session_id"] != first.json()["session_id"]
        wrong = await client.post("/sessions/s/fork", json={"step": 7}, headers=headers)
        assert (wrong.status_code, body_of(wrong)["code"]) == (422, "idempotency_conflict")

    with_client(Catalog([sine]), use)
