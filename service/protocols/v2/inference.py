"""An inference request as requests of the engine, and their answers as its reply.

Rules
- The one input is `x`, (B, T, *tail) of the manifest's port, in raw units, of any numeric datatype
  that is a number of the port's kind; for a text model also BYTES, (B, 1) texts or (B, T) tokens.
- With `sequence_id` (0 and "" mean none) it advances the session of that id, the same that other
  protocols know: B is 1. `sequence_start` begins it, anew where it lives; without it the session
  must be there; `sequence_end` forgets it once this is done.
- Without, each of the B rows is a sequence of its own, from the initial state, that leaves
  nothing behind. They are accepted or refused together, and run together.
- `step` and `idempotency_key` make a retry safe, as under every protocol. `timeout` (microseconds)
  ends the wait; `priority` is taken and changes nothing, as sessions take turns. Parameters that
  begin with `triton_` are for other servers. Any other is refused: a misspelled `step` would
  otherwise be no step.
- Outputs are `y` (FP32, or INT64 as its port is), and what the pipeline reads in it; all of them,
  where none is asked for.
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from service.engine import Engine
from service.errors import RequestError, ShapeError, TimedOutError, TooLongError
from service.job import Answer, Job, Opening, Request
from service.key_ring import Caller
from service.origin import Origin
from service.protocols.v2.datatypes import DATATYPES, OF_PORTS, Datatype, object_array
from service.protocols.v2.messages import InferInput, InferOutput, InferRequest, InferResponse
from service.session import SessionKey
from service.wire import MAX_SESSION_ID_CHARS, MAX_STEP, RowShape

Array = np.ndarray

INPUT = "x"
MAX_SEQUENCE_ID = 2**64 - 1
MAX_KEY_CHARS = 255  # of an idempotency key, as of the header
IGNORED_PREFIX = "triton_"  # of parameters
# Of what the pipeline reads in y. `text` is one element a row, the others one or more a step.
_OF_FIELD = {
    "text": "BYTES",
    "tokens": "BYTES",
    "labels": "BYTES",
    "probabilities": "FP32",
    "alarm": "BOOL",
}


@dataclass(frozen=True, slots=True)
class TensorRows:
    """One row of the input `x`: (T, *tail), or the elements of BYTES."""

    datatype: Datatype
    data: Array

    def decode(self, shape: RowShape) -> Array:
        """(time, *tail) in the client's units, or (time,) ids of text."""
        if self.datatype.name == "BYTES":
            return self._ids(shape)
        kinds = "fiu" if shape.dtype == "float32" else "iu"
        if self.data.dtype.kind not in kinds:
            raise ShapeError(
                f"`{INPUT}` has datatype {self.datatype.name}, expected "
                f"{'a float or an integer' if 'f' in kinds else 'an integer'}"
                f"{' or BYTES' if shape.vocabulary else ''}"
            )
        if self.data.shape[1:] != shape.tail:
            sizes = ", ".join(["batch", "time", *map(str, shape.tail)])
            raise ShapeError(
                f"a row of `{INPUT}` has shape {self.data.shape}, expected {shape.wanted} from "
                f"manifest port `x`: `{INPUT}` is ({sizes})"
            )
        if shape.dtype == "int64":
            return self._as_int64()
        return self.data

    def _as_int64(self) -> Array:
        if self.data.dtype.kind == "u" and int(self.data.max()) >= 2**63:
            raise ShapeError(f"`{INPUT}` holds {int(self.data.max())}, expected less than 2^63")
        return self.data.astype(np.int64)

    def _ids(self, shape: RowShape) -> Array:
        if shape.vocabulary is None:
            raise ShapeError(f"`{INPUT}` is BYTES, and this model takes numbers: {shape.wanted}")
        if self.data.ndim > 1:
            raise ShapeError(
                f"a row of `{INPUT}` has shape {self.data.shape}, expected (1,), a text, or "
                "(time,), its tokens"
            )
        try:
            texts = [element.decode() for element in self.data.flat]
        except UnicodeDecodeError as error:
            raise ShapeError(f"`{INPUT}` holds text that is not UTF-8: {error}") from None
        ids = shape.vocabulary.ids_of(texts[0] if len(texts) == 1 else texts)
        if not len(ids):
            raise ShapeError(f"`{INPUT}` is an empty text, expected at least one token")
        return ids


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
    parameters = _read_parameters(asked.parameters)
    session_id, step = _session_of(parameters), _step_of(parameters)
    rows = _rows_of(asked.inputs)
    if len(rows) > max_batch:
        raise TooLongError(
            f"`{INPUT}` has {len(rows)} rows, the server takes {max_batch} in one request; send "
            "it in several",
            got=len(rows),
            expected=max_batch,
        )
    first = Request(
        key=SessionKey(caller.tenant, session_id or ""),
        rows=rows[0],
        step=step,
        model=":".join(filter(None, (asked.model_name, asked.model_version))),
        want=_wanted(asked),
        most=caller.max_sessions,
        origin=origin,
    )
    if session_id is None:
        if step:
            raise RequestError("`step` is of a sequence; send its `sequence_id` too")
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
            f"`{INPUT}` has {len(rows)} rows, expected 1 of sequence {session_id}; other rows are "
            "other sequences, send them in requests of their own"
        )
    starts = _flag(parameters, "sequence_start")
    key = _key_of(parameters) or idempotency_key
    return [
        replace(
            first,
            opening=Opening.START if starts else Opening.LIVE,
            ends=_flag(parameters, "sequence_end"),
            idempotency_key=key,
        )
    ]


def timeout_s(asked: InferRequest) -> float | None:
    """How long the client waits; None: as long as it takes."""
    microseconds = _count(asked.parameters, "timeout", MAX_STEP)
    return microseconds / 1e6 if microseconds else None


def _read_parameters(parameters: Mapping[str, object]) -> Mapping[str, object]:
    for name in parameters:
        if name not in _PARAMETERS and not name.startswith(IGNORED_PREFIX):
            raise RequestError(
                f"there is no parameter `{name}`, expected some of {', '.join(_PARAMETERS)}"
            )
    _count(parameters, "priority", MAX_STEP)
    _count(parameters, "timeout", MAX_STEP)
    return parameters


_PARAMETERS = (
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "step",
    "idempotency_key",
    "timeout",
    "priority",
)


def _session_of(parameters: Mapping[str, object]) -> str | None:
    value = parameters.get("sequence_id", 0)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RequestError(f"`sequence_id` is {_show(value)}, expected an integer or a string")
    if isinstance(value, int) and not 0 <= value <= MAX_SEQUENCE_ID:
        raise RequestError(f"`sequence_id` is {value}, expected 0 to 2^64 - 1")
    if isinstance(value, str) and len(value) > MAX_SESSION_ID_CHARS:
        raise RequestError(
            f"`sequence_id` has {len(value)} characters, expected at most {MAX_SESSION_ID_CHARS}"
        )
    if value:
        return str(value)
    for flag in ("sequence_start", "sequence_end"):
        if _flag(parameters, flag):
            raise RequestError(f"`{flag}` is of a sequence; send its `sequence_id` too")
    return None


def _step_of(parameters: Mapping[str, object]) -> int | None:
    return _count(parameters, "step", MAX_STEP)


def _flag(parameters: Mapping[str, object], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"`{name}` is {_show(value)}, expected true or false")
    return value


def _count(parameters: Mapping[str, object], name: str, most: int) -> int | None:
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise RequestError(f"`{name}` is {_show(value)}, expected an integer from 0 to {most}")
    return value


def _key_of(parameters: Mapping[str, object]) -> str | None:
    value = parameters.get("idempotency_key")
    if value is None:
        return None
    if not isinstance(value, str):
        raise RequestError(f"`idempotency_key` is {_show(value)}, expected a string")
    if not 0 < len(value) <= MAX_KEY_CHARS:
        raise RequestError(
            f"`idempotency_key` has {len(value)} characters, expected 1 to {MAX_KEY_CHARS}"
        )
    return value


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _rows_of(inputs: Sequence[InferInput]) -> list[TensorRows]:
    names = [one.name for one in inputs]
    if names != [INPUT]:
        got = ", ".join(f"`{name}`" for name in names[:8]) or "none"
        raise RequestError(f"the inputs are {got}, expected one, `{INPUT}`")
    (x,) = inputs
    data = x.data
    if x.datatype.name == "BYTES" and data.ndim == 1:
        data = data[:, np.newaxis]
    if data.ndim < 2:
        raise ShapeError(
            f"`{INPUT}` has shape {list(data.shape)}, expected (batch, time, ...); a batch of one "
            "row is 1"
        )
    return [TensorRows(x.datatype, row) for row in data]


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


async def answers_of(
    engine: Engine, jobs: Sequence[Job], timeout_s: float | None = None
) -> list[Answer]:
    """Wait for all; whatever ends the wait, nobody waits for the others any more.

    Raises:
        CarouselError: one was refused, or what its run raised.
        TimedOutError: it took longer; a session may have moved, or not.
        CancelledError: this task was cancelled, or somebody abandoned a job.
    """
    futures = [job.future for job in jobs]
    try:
        if len(futures) == 1 and timeout_s is None:
            return [await futures[0]]
        done, waiting = await asyncio.wait(
            futures, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION
        )
        for future in futures:  # in their order: the first refusal is the one to tell
            if future in done:
                future.result()
        if waiting:
            raise timed_out(timeout_s)
    finally:
        abandon(engine, jobs)
    return [future.result() for future in futures]


def timed_out(timeout_s: float | None) -> TimedOutError:
    return TimedOutError(
        f"the request took longer than its timeout of {timeout_s} s; with `step` it is safe to "
        "send again"
    )


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
