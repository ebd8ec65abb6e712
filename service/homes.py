"""Which model a request runs on: the one its session lives on, or moves to, or begins on.

Before the store was read the answer is a guess, good enough to decode the request; the engine
corrects it when the session is known.
"""

from collections.abc import Awaitable, Callable

from service.catalog import Catalog
from service.errors import ArtifactError, ModelLoadingError, UnknownModelError
from service.forecast import ForecastRequest
from service.job import Job, Request
from service.model import Model
from service.promotion import Promotions
from service.session import Act, Record, names_last, reference
from service.store import Store

Fetch = Callable[[str], Awaitable[Model]]  # `name:version` of a model that is not loaded


class Homes:
    """The models of one process, as its sessions see them."""

    def __init__(
        self, catalog: Catalog, store: Store, promotions: Promotions, fetch: Fetch | None
    ) -> None:
        """`fetch` loads what is not loaded; None: nothing does."""
        self._catalog = catalog
        self._store = store
        self._promotions = promotions
        self._fetch = fetch

    async def load(self, reference: str) -> Model:
        """The model `name` or `name:version`, loaded if it was not.

        Raises:
            UnknownModelError: no such model, or no such version of it, is served.
            ArtifactError: its artifact is broken.
        """
        return await self.loaded(lambda: self._catalog.get(reference))

    async def guess(self, request: Request, last: Model | None) -> Model:
        """What the request's session is most likely on; `last`: what its last request runs on."""
        if request.model is not None:
            return await self.load(request.model)
        if self._catalog.only is not None:
            return self._catalog.only
        return last or await self.look_up(request)

    async def look_up(self, request: Request) -> Model:
        """The model that the session is on now."""
        (record,) = await self._store.get([request.key])
        return await self.loaded(lambda: self.of(request, record))

    async def loaded(self, find: Callable[[], Model]) -> Model:
        """What `find` finds, once it is loaded."""
        try:
            return find()
        except ModelLoadingError as error:
            await self.fetch(error)
            return find()

    async def fetch(self, error: ModelLoadingError) -> None:
        """Load what the error says is not loaded; ArtifactError if it cannot be."""
        if self._fetch is None:
            raise error
        await self._fetch(str(error.data["reference"]))

    def settles(self, job: Job, record: Record) -> bool:
        """Whether a job of a model that is loaded is bound to its session's, which stays there.

        True of nearly all; `of_job` and `moved` would both find `job.model`.
        """
        model = job.model
        return (
            record.version == model.version
            and record.model == model.name
            and job.ask.act is not Act.START
            and self._catalog.serves(model)
            and not self._promotions.moves(record.model, record.version)
        )

    def of(self, request: Request | ForecastRequest, record: Record | None) -> Model:
        """The model that reads the request's rows and gives the last reply again.

        Raises:
            ModelLoadingError: it is not loaded; `fetch` it.
            UnknownModelError, ArtifactError, RequestError: as `Catalog.for_new`.
        """
        if record is None:
            return self._catalog.for_new(request.model)
        lives_on = reference(record.model, record.version)
        try:
            return self._catalog.get(lives_on)
        except UnknownModelError as error:
            goal = self._goal(record)
            if goal != lives_on and self._catalog.is_offered(goal):
                return self._catalog.get(goal)  # it moves there
            raise UnknownModelError(
                f"session `{request.session_id}` lives on {lives_on}, "
                f"which is not served here; {error.message}",
                **error.data,
            ) from error

    def of_job(self, job: Job, record: Record | None) -> Model:
        """`of`, but that a start needs the session's own model only to give the last reply again.

        So nothing that is wrong with the old version keeps a session from beginning anew.
        """
        if record is None or job.ask.act is not Act.START:
            return self.of(job.request, record)
        if names_last(job.ask, record):
            try:
                return self.of(job.request, record)
            except (UnknownModelError, ArtifactError):
                pass
        return self.moved(job, record)

    def moved(self, job: Job, record: Record) -> Model:
        """The model that the session's next request runs on; raises as `of`."""
        if job.ask.act is Act.START:
            return self._catalog.for_new(job.ask.model or record.model)
        goal = self._goal(record)
        stays = job.ask.model == reference(record.model, record.version)
        if stays or not self._catalog.is_offered(goal) or goal in self._catalog.broken:
            return job.model  # the client says so, or the other version is not here
        return self._catalog.get(goal)

    def _goal(self, record: Record) -> str:
        return reference(record.model, self._promotions.goal(record))
