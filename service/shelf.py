"""Where a service's artifacts lie, and their loading: at the start, and while it runs.

Rules
- A place is an artifact directory NAME/VERSION/, a directory NAME/ of versions, or one that holds
  several NAME/. The last two are looked at again and again: a version that appears there, whole by
  a rename, is proven in a thread, and then new sessions get it. One that was taken away gets no new
  sessions.
- Loaded at the start: every artifact that is named by its own directory, and the newest of each
  name that can be proven. Other versions are loaded when a session that lives on them is asked for.
- A broken version is reported once, and tried again only if its files have changed: a copy that
  was not made by a rename is broken until it is whole.

Versions of a name are in the order in which their manifests were written.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from service.catalog import Catalog, log_broken
from service.errors import ArtifactError
from service.manifest import MANIFEST
from service.model import Model

logger = logging.getLogger("carousel.shelf")

Load = Callable[[Path], Model]
Stamp = tuple[tuple[str, int, int], ...]  # of each file: name, mtime in ns, size in bytes


class Shelf:
    """The artifacts of one process."""

    def __init__(self, places: Sequence[Path], load: Load) -> None:
        """`load` reads and proves an artifact directory; ArtifactError if it cannot."""
        self._places = list(places)
        self._load = load
        self._paths: dict[str, Path] = {}  # name:version -> where it lies now, oldest first
        self._references: dict[tuple[Path, int], str] = {}  # of manifests that were read
        self._failed: dict[str, Stamp] = {}  # as they were when they could not be loaded
        self._loading: dict[str, asyncio.Task[Model]] = {}
        self._pool = ThreadPoolExecutor(1, "carousel-load")

    def open(self, default: str | None = None) -> Catalog:
        """Load what is served from the start; blocks.

        Raises:
            SettingsError: the default model is none of them.
        """
        self._paths = self._scan()
        for place in self._places:
            if not any(path == place or place in path.parents for path in self._paths.values()):
                self._paths[f"{place.parent.name}:{place.name}"] = place  # its loading says why
        models: list[Model] = []
        broken: dict[str, ArtifactError] = {}
        found: set[str] = set()  # names that have their newest
        for reference, path in reversed(self._paths.items()):
            name = reference.partition(":")[0]
            if name in found and path not in self._places:
                continue
            try:
                models.append(self._prove(reference, path))
                found.add(name)
            except ArtifactError as error:
                broken[reference] = error
        catalog = Catalog(models[::-1], dict(reversed(broken.items())))
        catalog.offer(list(self._paths))
        catalog.default_is(default)
        return catalog

    async def fetch(self, catalog: Catalog, reference: str) -> Model:
        """A model that is offered, loaded now if it was not.

        Raises:
            ArtifactError: it cannot be served, and the catalog knows that from now on.
        """
        task = self._loading.get(reference)
        if task is None:
            task = asyncio.create_task(self._fetch(catalog, reference))
            self._loading[reference] = task
            task.add_done_callback(lambda _: self._loading.pop(reference))
        return await asyncio.shield(task)

    async def refresh(self, catalog: Catalog) -> None:
        """Look at the places again; load what is newer than what new sessions get."""
        loop = asyncio.get_running_loop()
        self._paths, changed = await loop.run_in_executor(self._pool, self._look)
        catalog.offer(list(self._paths))
        for reference in changed:
            catalog.forgive(reference)
        for name in catalog.names:
            await self._fetch_newest(catalog, name)

    def is_named(self, reference: str) -> bool:
        """Whether an artifact was named by its own directory, to be served whatever is newer."""
        return self._paths.get(reference) in self._places

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _fetch_newest(self, catalog: Catalog, name: str) -> None:
        for version in reversed(catalog.versions_of(name)):
            reference = f"{name}:{version}"
            if reference in self._paths:
                try:
                    await self.fetch(catalog, reference)
                    return
                except ArtifactError:
                    continue  # the catalog knows; the version before it goes on

    async def _fetch(self, catalog: Catalog, reference: str) -> Model:
        path = self._paths.get(reference)
        if path is None or reference in catalog.served:
            return catalog.get(reference)
        loop = asyncio.get_running_loop()
        try:
            model = await loop.run_in_executor(self._pool, self._prove, reference, path)
        except ArtifactError as error:
            catalog.refuse(reference, error)
            raise
        catalog.add(model)
        return model

    def _prove(self, reference: str, path: Path) -> Model:
        stamp = _stamp(path)
        try:
            return self._load(path)
        except ArtifactError as error:
            error.data.setdefault("artifact", str(path))
            self._failed[reference] = stamp
            log_broken(reference, error)
            raise
        except Exception as error:
            logger.exception("%s cannot be loaded", reference)
            self._failed[reference] = stamp
            raise ArtifactError(
                f"{path} cannot be loaded ({type(error).__name__}); the server's log says why",
                artifact=str(path),
            ) from error

    def _look(self) -> tuple[dict[str, Path], list[str]]:
        """What is there now, and what of it has changed since it failed."""
        paths = self._scan()
        failed = [reference for reference in self._failed if reference in paths]
        return paths, [r for r in failed if _stamp(paths[r]) != self._failed[r]]

    def _scan(self) -> dict[str, Path]:
        found = find_versions(self._places)
        return {self._reference_of(path, written_ns): path for path, written_ns in found.items()}

    def _reference_of(self, path: Path, written_ns: int) -> str:
        known = self._references.get((path, written_ns))
        if known is None:
            known = self._references[path, written_ns] = _read_reference(path)
        return known


def find_versions(places: Iterable[Path]) -> dict[Path, int]:
    """Every artifact directory at `places` -> when its manifest was written, in ns; oldest first.

    Hidden ones do not count: an export that was killed may have left its working folder.
    """
    found: dict[Path, int] = {}
    for place in places:
        for depth in ("", "*/", "*/*/"):
            for manifest in place.glob(depth + MANIFEST):
                path = manifest.parent
                if path == place or not path.name.startswith("."):
                    found[path] = _written_ns(manifest)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def names_at(places: Iterable[Path]) -> list[str]:
    """The names of what lies at `places`; of one where nothing does, what its path says."""
    names: set[str] = set()
    for place in places:
        names |= {path.parent.name for path in find_versions([place])} or {place.parent.name}
    return sorted(names)


def _read_reference(path: Path) -> str:
    """What the manifest says; of one that cannot be read, what its directory is called."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        return f"{manifest['name']}:{manifest['version']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path.parent.name}:{path.name}"


def _written_ns(manifest: Path) -> int:
    try:
        return manifest.stat().st_mtime_ns
    except OSError:  # it was taken away between the listing and now
        return 0


def _stamp(path: Path) -> Stamp:
    try:
        stats = [(file.name, file.stat()) for file in path.iterdir()]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats))
