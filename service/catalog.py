"""The models of a service, by name and version, and which one a request means.

Rules
- A request names a model as `name` (its newest version here that was proven) or `name:version`.
- A request that names none gets its session's own model; a new session gets the default model,
  or the only one configured. Several and no default: it must name one.
- A broken artifact never becomes servable and disturbs nobody: requests that mean it are refused
  with the reason, all others are served. A name whose newest version is broken goes on with the
  one before. A name of which nothing can be served still counts as configured, so that a request
  without a model never goes to another one because its own is broken.
- New sessions get what is offered. A version that is offered no more, because its artifact was
  taken away, still serves the sessions that live on it.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from service.errors import (
    ArtifactError,
    ModelLoadingError,
    RequestError,
    SettingsError,
    UnknownModelError,
)
from service.model import Model

logger = logging.getLogger("carousel.catalog")


class Catalog:
    """What is loaded, what is offered, and what could not be loaded."""

    def __init__(
        self,
        models: Sequence[Model],
        broken: dict[str, ArtifactError] | None = None,
        default: str | None = None,
    ) -> None:
        """
        Args:
            models: oldest first; of two versions of one name the later is the newest.
            broken: `name:version` -> why it could not be loaded.
            default: `name` or `name:version` for new sessions that name no model.
        """
        self.broken = dict(broken or {})
        self._loaded = {model.reference: model for model in models}
        self._offered = list(self._loaded)  # oldest first
        self._used: set[str] = set()
        self._settle()
        self.default_is(default)

    @classmethod
    def load(
        cls,
        paths: Iterable[Path],
        variant: str | None = None,
        default: str | None = None,
        threads: int = 1,
        batch: int | None = None,
        max_state_bytes: int | None = None,
    ) -> "Catalog":
        """Load every artifact directory NAME/VERSION/ in `paths`; keep the reasons of failures.

        The other arguments are those of `Model.load`.
        """
        models: list[Model] = []
        broken: dict[str, ArtifactError] = {}
        for path in paths:
            try:
                models.append(Model.load(path, variant, threads, batch, max_state_bytes))
            except ArtifactError as error:
                error.data.setdefault("artifact", str(path))
                reference = f"{path.parent.name}:{path.name}"
                broken[reference] = error
                log_broken(reference, error)
        return cls(models, broken, default)

    # What changes while the service runs --------------------------------------------------------

    def default_is(self, default: str | None) -> None:
        """The model of new sessions that name none; SettingsError if it is not configured."""
        check_default(default, self.names)
        self._default = default

    def offer(self, references: Sequence[str]) -> None:
        """What new sessions may get from now on, loaded or not; oldest first."""
        self._offered = list(references)
        self.broken = {name: why for name, why in self.broken.items() if name in self._offered}
        self._settle()

    def add(self, model: Model) -> None:
        """Serve a model that was loaded and proven."""
        self._loaded[model.reference] = model
        self.broken.pop(model.reference, None)
        self._settle()

    def refuse(self, reference: str, error: ArtifactError) -> None:
        """Remember why an offered model cannot be served."""
        self.broken[reference] = error
        self._settle()

    def forgive(self, reference: str) -> None:
        """Try a broken model again when it is next wanted: its files have changed."""
        self.broken.pop(reference, None)
        self._settle()

    def note_use(self, name: str, version: str) -> None:
        """A session is used, perhaps of a version that is not the newest."""
        newest = self._newest.get(name)
        if newest is None or newest.version != version:
            self._used.add(f"{name}:{version}")

    def take_used(self) -> set[str]:
        """The older versions that were used since this was last asked."""
        used, self._used = self._used, set()
        return used

    def unload(self, reference: str) -> None:
        """Forget a loaded model; what runs on it keeps it until it is done."""
        del self._loaded[reference]
        self._settle()

    def _settle(self) -> None:
        self._newest = {
            reference.partition(":")[0]: self._loaded[reference]
            for reference in self._offered
            if reference in self._loaded
        }
        of_each = [*self._offered, *self.broken]
        self.names = sorted({reference.partition(":")[0] for reference in of_each})

    # What is there ------------------------------------------------------------------------------

    names: list[str]  # every configured name, served or broken

    @property
    def models(self) -> list[Model]:
        """Every loaded model; within a name the oldest first, and before it what is offered no
        more."""
        rank = {reference: n for n, reference in enumerate(self._offered)}
        return sorted(self._loaded.values(), key=lambda model: rank.get(model.reference, -1))

    @property
    def served(self) -> list[str]:
        return sorted(self._loaded)

    @property
    def unserved(self) -> list[ArtifactError]:
        """Why the names are not served of which no version is."""
        of_name = {reference.partition(":")[0]: error for reference, error in self.broken.items()}
        return [error for name, error in of_name.items() if name not in self._newest]

    @property
    def only(self) -> Model | None:
        """The newest version of the only name that is configured."""
        return self._newest.get(self.names[0]) if len(self.names) == 1 else None

    def loaded(self, name: str, version: str) -> Model | None:
        """A model, if it is loaded."""
        return self._loaded.get(f"{name}:{version}")

    def serves(self, model: Model) -> bool:
        """Whether it is loaded, and not another of the same name and version since."""
        return self._loaded.get(model.reference) is model

    def is_newest(self, model: Model) -> bool:
        return self._newest.get(model.name) is model

    def is_offered(self, reference: str) -> bool:
        return reference in self._offered

    def versions_of(self, name: str) -> list[str]:
        """The versions of a name that are not known to be broken; those offered oldest first."""
        known = dict.fromkeys([*self._offered, *self._loaded])
        parts = (reference.partition(":") for reference in known if reference not in self.broken)
        return [version for its_name, _, version in parts if its_name == name]

    def for_new(self, wanted: str | None) -> Model:
        """The model of a new session.

        Raises:
            UnknownModelError: no such model, or no such version of it, is served.
            ArtifactError: it is configured, but its artifact is broken.
            RequestError: the request must name one of several.
            ModelLoadingError: its artifact is here; load it.
        """
        if wanted is None:
            wanted = self._default or (self.names[0] if len(self.names) == 1 else None)
        if wanted is None:
            raise RequestError(
                f"several models are served, expected `model` to name one of {self.names}",
                models=self.names,
            )
        if ":" in wanted and wanted not in self._offered and wanted not in self.broken:
            raise self._unknown(wanted)
        return self.get(wanted)

    def get(self, reference: str) -> Model:
        """The model `name` (its newest version) or `name:version`; raises as `for_new`."""
        model = self._newest.get(reference) or self._loaded.get(reference)
        if model is not None:
            return model
        for broken, error in reversed(self.broken.items()):
            if reference in (broken, broken.partition(":")[0]):
                raise type(error)(error.message, **error.data)  # a fresh one: tracebacks pile up
        if reference in self._offered:
            raise ModelLoadingError(f"{reference} is being loaded; try again", reference=reference)
        raise self._unknown(reference)

    def _unknown(self, reference: str) -> UnknownModelError:
        return UnknownModelError(
            f"model `{reference}` is not served, expected one of {self.served}",
            model=reference,
            models=self.served,
        )


def log_broken(reference: str, error: ArtifactError) -> None:
    logger.error("%s is not served: %s", reference, error.message)


def check_default(default: str | None, names: Sequence[str]) -> None:
    """SettingsError unless the default model, `name` or `name:version`, is one of `names`."""
    if default is not None and default.partition(":")[0] not in names:
        raise SettingsError(
            f"CAROUSEL_DEFAULT_MODEL={default} is not served, expected one of {sorted(names)}"
        )
