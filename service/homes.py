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
from service.session import (
    Act,
    Move,
    Record,
    Situation,
    judge,
    names_last,
    reference,
    situation,
)
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

    def at_once(self, request: Request) -> Model | None:
        """What `guess` would say, where it need not wait; else None."""
        if request.model is None:
            return self._catalog.only
        return self._catalog.find(request.model)

    async def guess(self, request: Request, last: Model | None) -> Model:
        """What the request's session is most likely on, if `at_once` does not say it.

        Args:
            last: what its last request runs on.
        """
        if request.model is not None:
            return await self.load(request.model)
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

    def decide(self, job: Job, record: Record | None) -> Move:
        """`decide`, with the job bound to the model that its session is on."""
        goal = self._promotions.goal(record) if record is not None else None
        found = situation(job.ask, record, goal)
        if found is not Situation.ELSEWHERE:
            home = self.of_job(job, record)
            if home is not job.model:  # it was guessed before the session could be known
                job.bind(home)
                found = situation(job.ask, record, goal)
        return _judge(found, job, record)

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


def _judge(found: Situation, job: Job, record: Record | None) -> Move:
    """`judge`, of a job whose model may not be the one that gave the last reply.

    That model is not served then, and whether the request is the last one again cannot be told
    for sure, as its rows were compared in another model's units.
    """
    if record is not None and job.model.version != record.version:
        if found is Situation.AGAIN and job.ask.act is Act.START:
            return Move.BEGIN
        if found in (Situation.AGAIN, Situation.REUSED):
            raise _old_reply(record)
    return judge(found, job.ask, record)


def _old_reply(record: Record) -> UnknownModelError:
    return UnknownModelError(
        f"the last reply was given by {reference(record.model, record.version)}, which is not "
        f"served here any more; go on with step {record.step}",
        model=reference(record.model, record.version),
        expected=record.step,
    )
