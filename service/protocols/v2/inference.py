"""An inference request as requests of the engine, and their answers as its reply.

Rules
- The one input is `x`, (B, T, *tail) of the manifest's port, in raw units, of any numeric datatype
  that is a number of the port's kind; for a text model also BYTES, (B, 1) texts or (B, T) tokens.
- With `sequence_id` (0 and "" mean none) it advances the session of that id, the same that other
  protocols know: B is 1. `sequence_start` begins it, anew where it lives; without it the session
  must be there; `sequence_end` forgets it once this is done.
- Without, each of the B rows is a sequence of its own, from the initial state, that leaves
  nothing behind. They are accepted or refused together, and run together.
- `step` and `idempotency_key` make a retry safe, as under every protocol. After `timeout`
  (microseconds) it is refused, and was not done; `priority` is taken and changes nothing, as
  sessions take turns. Parameters that begin with `triton_` are for other servers. Any other is
  refused: a misspelled `step` would otherwise be no step.
- Outputs are `y` (FP32, or INT64 as its port is), and what the pipeline reads in it; all of them,
  where none is asked for.
"""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from service.engine import Engine
from service.errors import RequestError, ShapeError, TooLongError
from service.job import Answer, Job, Opening, Request
from service.key_ring import Caller
from service.origin import Origin
from service.protocols.v2.datatypes import DATATYPES, OF_PORTS, Datatype, object_array
from service.protocols.v2.messages import InferOutput, InferRequest, InferResponse
from service.protocols.v2.parameters import IGNORED_PREFIX, read_parameters
from service.protocols.v2.tensor_rows import INPUT, rows_of
from service.session import SessionKey

Array = np.ndarray

# Of what the pipeline reads in y. `text` is one element a row, the others one or more a step.
_OF_FIELD = {
    "text": "BYTES",
    "tokens": "BYTES",
    "labels": "BYTES",
    "probabilities": "FP32",
    "alarm": "BOOL",
}


# In ---------------------------------------------------------------------------------------------


def to_requests(
    asked: InferRequest,
    caller: Caller,
    origin: Origin,
    max_batch: int,
    idempotency_key: str | None = None,
) -> list[Request]:
    """What the engine must do: one request of a session, or B that leave nothing behind.

    Args:
        max_batch: the greatest B.
        idempotency_key: from the headers; one in the parameters counts before it.
    Raises:
        ClientError: it is none, whatever the model; nothing was done.
    """
    said = read_parameters(asked.parameters)
    rows = rows_of(asked.inputs)
    if len(rows) > max_batch:
        raise TooLongError(
            f"`{INPUT}` has {len(rows)} rows, the server takes {max_batch} in one request; send "
            "it in several",
            got=len(rows),
            expected=max_batch,
        )
    first = Request(
        key=SessionKey(caller.tenant, said.session_id or ""),
        rows=rows[0],
        step=said.step,
        model=":".join(filter(None, (asked.model_name, asked.model_version))),
        want=_wanted(asked),
        most=caller.max_sessions,
        origin=origin.within(said.timeout_s),
    )
    if said.session_id is None:
        return [
            replace(
                first,
                key=SessionKey(caller.tenant, secrets.token_hex(16)),
                rows=row,
                step=None,
                opening=Opening.START,
                ends=True,
                is_unnamed=True,
            )
            for row in rows
        ]
    if len(rows) > 1:
        raise ShapeError(
            f"`{INPUT}` has {len(rows)} rows, expected 1 of sequence {said.session_id}; other rows "
            "are other sequences, send them in requests of their own"
        )
    return [
        replace(
            first,
            opening=Opening.START if said.starts else Opening.LIVE,
            ends=said.ends,
            idempotency_key=said.idempotency_key or idempotency_key,
        )
    ]


def _wanted(asked: InferRequest) -> tuple[str, ...] | None:
    names = tuple(output.name for output in asked.outputs)
    if len(set(names)) < len(names):
        raise RequestError(f"an output is asked for twice: {', '.join(names)}")
    for output in asked.outputs:
        for parameter in output.parameters:
            if not parameter.startswith(IGNORED_PREFIX):
                raise RequestError(
                    f"output `{output.name}` has the parameter `{parameter}`, which is not offered"
                )
    return names or None


# Running ----------------------------------------------------------------------------------------


async def submit(engine: Engine, requests: Sequence[Request]) -> list[Job]:
    """Hand over the requests of one inference, to run in one batch.

    Raises:
        CarouselError: one was refused; the others are abandoned, and nothing of them stays.
    """
    jobs: list[Job] = []
    try:
        for request in requests:
            # Rows after the first run on the very version that it does.
            pinned = replace(request, model=jobs[0].model.reference) if jobs else request
            jobs.append(await _submit_one(engine, pinned))
        lengths = sorted({len(job.x) for job in jobs})
        if len(lengths) > 1:
            raise ShapeError(
                f"the rows of `{INPUT}` have {lengths[0]} to {lengths[-1]} steps, expected as many "
                "of each; send those of other lengths in requests of their own"
            )
    except BaseException:
        abandon(engine, jobs)
        raise
    return jobs


async def _submit_one(engine: Engine, request: Request) -> Job:
    try:
        return await engine.submit(request)
    except RequestError:
        _refuse_unknown_outputs(engine, request)
        raise


def _refuse_unknown_outputs(engine: Engine, request: Request) -> None:
    """RequestError, in the words of v2, if no version of the model has what is wanted."""
    name = (request.model or "").partition(":")[0]
    fields = {
        field: None
        for model in engine.catalog.models
        if model.name == name
        for field in model.reader.fields
    }
    for wanted in request.want or ():
        if fields and wanted not in fields:
            raise RequestError(
                f"`{name}` has no output `{wanted}`, expected some of {', '.join(fields)}"
            ) from None


async def answers_of(engine: Engine, jobs: Sequence[Job]) -> list[Answer]:
    """Wait for all; whatever ends the wait, nobody waits for the others any more.

    Raises:
        CarouselError: one was refused, or what its run raised.
        CancelledError: this task was cancelled, or somebody abandoned a job.
    """
    futures = [job.future for job in jobs]
    try:
        if len(futures) == 1:
            return [await futures[0]]
        done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)
        for future in futures:  # in their order: the first refusal is the one to tell
            if future in done:
                future.result()
    finally:
        abandon(engine, jobs)
    return [future.result() for future in futures]


def abandon(engine: Engine, jobs: Sequence[Job]) -> None:
    """Nobody waits for these jobs any more."""
    for job in jobs:
        if job.future.done() and not job.future.cancelled():
            job.future.exception()  # one was told; asyncio logs what nobody asked for
        else:  # a future that was waited for by a cancelled task is cancelled, its job is not
            engine.abandon(job)


# Out --------------------------------------------------------------------------------------------


def to_response(asked: InferRequest, answers: Sequence[Answer]) -> InferResponse:
    """The reply, of one answer for each of `to_requests`."""
    first = answers[0]
    names = [output.name for output in asked.outputs] or list(first.result)
    parameters: dict[str, bool | int | str] = {}
    sequence_id = asked.parameters.get("sequence_id")
    if sequence_id and isinstance(sequence_id, int | str):
        parameters = {
            "sequence_id": sequence_id,
            "step": first.step,
            "created": first.created,
            "restarted": first.restarted,
        }
    return InferResponse(
        model_name=first.model,
        model_version=first.version,
        id=asked.id,
        outputs=tuple(_output(name, [answer.result[name] for answer in answers]) for name in names),
        parameters=parameters,
    )


def output_datatype(field: str, y_dtype: str) -> Datatype:
    """Of one field of a reply, of a model whose port y is float32 or int64."""
    return DATATYPES[_OF_FIELD.get(field) or OF_PORTS[y_dtype]]


def _output(name: str, values: Sequence[Any]) -> InferOutput:
    """Of each row's value of one field, the tensor of all."""
    is_integer = name == "y" and values[0].dtype.kind == "i"
    datatype = output_datatype(name, "int64" if is_integer else "float32")
    if datatype.size is None:
        rows = [[value] if name == "text" else value for value in values]
        elements = [str(element).encode() for row in rows for element in row]
        return InferOutput(name, datatype, object_array(elements, (len(rows), len(rows[0]))))
    with np.errstate(over="ignore"):  # raw units beyond float32 are infinite in FP32
        stacked = np.stack([np.asarray(value) for value in values]).astype(datatype.dtype)
    return InferOutput(name, datatype, stacked)
