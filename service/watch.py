"""What a process looks at again and again: artifacts on disk, promotions, versions not needed.

Each look is a listing of some directories, in a thread, and one read of the store. What fails is
logged and tried again at the next look; requests go on meanwhile.
"""

import asyncio
import logging

from service.catalog import Catalog
from service.errors import CarouselError
from service.leases import Leases
from service.promotion import Promotions
from service.shelf import Shelf

PERIOD_S = 1.0  # a new version is served within a second of its proof

logger = logging.getLogger("carousel.watch")


class Watch:
    """One process's task that keeps its models as the disk and the store say."""

    def __init__(
        self,
        catalog: Catalog,
        shelf: Shelf,
        promotions: Promotions,
        leases: Leases,
        period_s: float = PERIOD_S,
    ) -> None:
        self._catalog = catalog
        self._shelf = shelf
        self._promotions = promotions
        self._leases = leases
        self._older: set[str] = set()  # versions that were not their models' newest
        self._period_s = period_s
        self._task: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """One look.

        Raises:
            StoreUnavailableError: what others promoted could not be read.
        """
        await self._shelf.refresh(self._catalog)
        await self._promotions.refresh(self._catalog.names)
        await self._unload()

    async def _unload(self) -> None:
        """Unload the versions that no live session needs; one that is here is loaded again if
        it is asked for."""
        catalog = self._catalog
        older = {model.reference for model in catalog.models if not catalog.is_newest(model)}
        superseded = older - self._older  # sessions began on it until now
        self._older = older
        needed = await self._leases.needed(older, catalog.take_used() | superseded)
        for reference in older - needed:
            if not self._shelf.is_named(reference):
                logger.info("%s is unloaded: no session needs it", reference)
                catalog.unload(reference)

    async def start(self) -> None:
        """Look now, and then every `period_s`, on the running loop, until `close`."""
        await self._try_to_look()
        self._task = asyncio.get_running_loop().create_task(self._look_forever())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._shelf.close()

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            await self._try_to_look()

    async def _try_to_look(self) -> None:
        try:
            await self.look()
        except CarouselError as error:
            logger.warning("cannot look for changes: %s", error.message)
        except Exception:
            logger.exception("cannot look for changes")
