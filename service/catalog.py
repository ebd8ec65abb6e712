"""The models of a service, by name and version, and which one a request means.

Rules
- A request names a model as `name` (its newest version here) or `name:version`.
- A request that names none gets its session's own model; a new session gets the default model,
  or the only one configured. Several and no default: it must name one.
- A broken artifact never becomes servable and disturbs nobody: requests that mean it are refused
  with the reason, all others are served. It still counts as configured, so that a request without
  a model never goes to another one because its own is broken.
"""

import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from service.errors import ArtifactError, RequestError, SettingsError, UnknownModelError
from service.model import Model

logger = logging.getLogger("carousel.catalog")


class Catalog:
    """What was loaded, and what could not be."""

    def __init__(
        self,
        models: Sequence[Model],
        broken: dict[str, ArtifactError] | None = None,
        default: str | None = None,
    ) -> None:
        """
        Args:
            models: oldest first; of two versions of one name the later is the newest.
            broken: name -> why it could not be loaded.
            default: `name` or `name:version` for new sessions that name no model.
        """
        self.models = list(models)
        self.broken = dict(broken or {})
        self._default = default
        self._by_reference: dict[str, Model] = {}
        for model in self.models:
            self._by_reference[model.name] = model
            self._by_reference[model.reference] = model
        check_default(default, self.names)

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
                broken[path.parent.name] = error
                logger.error("%s is not served: %s", path.parent.name, error.message)
        return cls(models, broken, default)

    @property
    def names(self) -> list[str]:
        """Every configured name, served or broken."""
        return sorted({model.name for model in self.models} | set(self.broken))

    @property
    def served(self) -> list[str]:
        return sorted(model.reference for model in self.models)

    @cached_property
    def only(self) -> Model | None:
        """The model of every session, if one alone is configured."""
        return self.models[0] if len(self.models) == 1 and not self.broken else None

    def for_new(self, wanted: str | None) -> Model:
        """The model of a new session.

        Raises:
            UnknownModelError: no such model, or no such version of it, is served.
            ArtifactError: it is configured, but its artifact is broken.
            RequestError: the request must name one of several.
        """
        if wanted is None:
            wanted = self._default or (self.names[0] if len(self.names) == 1 else None)
        if wanted is None:
            raise RequestError(
                f"several models are served, expected `model` to name one of {self.names}",
                models=self.names,
            )
        return self.get(wanted)

    def get(self, reference: str) -> Model:
        """The model `name` (its newest version) or `name:version`; raises as `for_new`."""
        model = self._by_reference.get(reference)
        if model is not None:
            return model
        name = reference.partition(":")[0]
        if name in self.broken:
            error = self.broken[name]
            raise type(error)(error.message, **error.data)  # a fresh one: tracebacks pile up
        raise UnknownModelError(
            f"model `{reference}` is not served, expected one of {self.served}",
            model=reference,
            models=self.served,
        )


def check_default(default: str | None, names: Sequence[str]) -> None:
    """SettingsError unless the default model, `name` or `name:version`, is one of `names`."""
    if default is not None and default.partition(":")[0] not in names:
        raise SettingsError(
            f"CAROUSEL_DEFAULT_MODEL={default} is not served, expected one of {sorted(names)}"
        )
