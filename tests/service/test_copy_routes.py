"""Copies and promotions by callers who may not: other tenants, full ones, no admins."""

from collections.abc import Awaitable, Callable

import httpx
import pytest

from service.catalog import Catalog
from service.key_ring import KeyRing
from service.model import Model
from service.protocols.access import Access
from service.protocols.native import NativeApp
from service.snapshot import Keyring
from tests.service.test_engine import run, running
from tests.service.test_native import ACME, ADMIN, KEYS, LINE, MAX_BODY_BYTES, ZETA, bearer, body_of

RING = Keyring((b"k" * 32,))


def with_routes(
    catalog: Catalog, keyring: Keyring, use: Callable[[httpx.AsyncClient], Awaitable[None]]
) -> None:
    async def scenario() -> None:
        async with running(catalog) as engine:
            app = NativeApp(engine, MAX_BODY_BYTES, Access(KeyRing(None, KEYS)), keyring)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                await use(client)

    run(scenario())


def code_of(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, body_of(reply)["code"]


def test_another_tenants_session_can_be_neither_forked_nor_downloaded(sine: Model) -> None:
    """It answers as one that does not exist; and its snapshot is refused."""

    async def use(client: httpx.AsyncClient) -> None:
        await client.post("/predict", json=LINE, headers=bearer(ACME))
        for reply in (
            await client.post("/sessions/s/fork", headers=bearer(ZETA)),
            await client.get("/sessions/s/snapshot", headers=bearer(ZETA)),
            await client.get("/sessions/nobody/snapshot", headers=bearer(ZETA)),
        ):
            assert code_of(reply) == (404, "session_not_found")
        file = (await client.get("/sessions/s/snapshot", headers=bearer(ACME))).content
        put = await client.put("/sessions/s/snapshot", content=file, headers=bearer(ZETA))
        assert code_of(put) == (403, "other_tenant")
        assert (await client.get("/sessions/s", headers=bearer(ZETA))).status_code == 404

    with_routes(Catalog([sine]), RING, use)


def test_copies_count_among_a_tenants_sessions(sine: Model) -> None:
    """Of a tenant that may have one, neither a fork nor a restore makes two."""

    async def use(client: httpx.AsyncClient) -> None:
        await client.post("/predict", json=LINE, headers=bearer(ZETA))
        fork = await client.post("/sessions/s/fork", headers=bearer(ZETA))
        assert code_of(fork) == (429, "overloaded")
        file = (await client.get("/sessions/s/snapshot", headers=bearer(ZETA))).content
        put = await client.put("/sessions/t/snapshot", content=file, headers=bearer(ZETA))
        assert (code_of(put), body_of(put)["limit"]) == ((429, "overloaded"), "tenant_sessions")
        over = await client.put(
            "/sessions/s/snapshot?replace=true", content=file, headers=bearer(ZETA)
        )
        assert (over.status_code, over.json()["replaced"]) == (200, True)

    with_routes(Catalog([sine]), RING, use)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (401, "unauthorized")),
        (bearer(ACME), (403, "forbidden")),
        (bearer(ADMIN), (400, "invalid_request")),  # it has one version
    ],
)
def test_promotion_is_for_admins(
    sine: Model, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    """It changes the server for all tenants."""

    async def use(client: httpx.AsyncClient) -> None:
        assert code_of(await client.post("/models/sine-cell/promote", headers=headers)) == expected

    with_routes(Catalog([sine]), RING, use)


def test_without_a_key_in_common_there_are_no_snapshots(sine: Model) -> None:
    """501, and the setting that helps."""

    async def use(client: httpx.AsyncClient) -> None:
        await client.post("/predict", json=LINE, headers=bearer(ACME))
        reply = await client.get("/sessions/s/snapshot", headers=bearer(ACME))
        assert code_of(reply) == (501, "no_snapshot_key")
        assert "set CAROUSEL_SNAPSHOT_KEY" in body_of(reply)["message"]

    with_routes(Catalog([sine]), Keyring(()), use)


@pytest.mark.parametrize(
    ("path", "method", "code"),
    [
        ("/sessions//fork", "POST", "method_not_allowed"),  # the session called "/fork"
        ("/sessions/s/fork", "GET", "method_not_allowed"),
        ("/models//promote", "POST", "not_found"),
        ("/models/a/b/promote", "POST", "not_found"),
        ("/models/a", "GET", "not_found"),
    ],
)
def test_paths_that_are_nearly_routes(sine: Model, path: str, method: str, code: str) -> None:
    """Each is refused in the one shape."""

    async def use(client: httpx.AsyncClient) -> None:
        assert code_of(await client.request(method, path, headers=bearer(ADMIN)))[1] == code

    with_routes(Catalog([sine]), RING, use)
