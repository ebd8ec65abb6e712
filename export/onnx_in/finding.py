"""How an ONNX file is run, found out by running it.

Where the batch and time axes of its values lie, how many rows and steps it takes in one call, and,
without `--call`, which of several bindings is meant. A guess counts if chunks give what the whole
gives and a row what it gives alone; a file that looks ahead passes none of these tests, and the
gate says so. Two guesses that both count and give different numbers are an error.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from export.errors import CallError
from export.onnx_in.ports import Binding, list_ports, propose_bindings, read_binding
from export.onnx_in.reference import (
    ArrayState,
    Axes,
    FileCall,
    FileState,
    OnnxReference,
    where_axes,
)
from export.onnx_in.shapes import with_input_sizes, without_size
from export.onnx_in.source import Array, FileValue, OnnxModel
from export.reference import StateSpec

PROBE_ROWS, PROBE_STEPS = (2, 3), (5, 4)
CLOSE = 1e-4  # between ways to cut the same sequence; a wrong axis or pairing is off by far more


@dataclass(frozen=True)
class _Guess:
    call: FileCall
    counts: bool  # rows and chunks do not matter
    y: Array
    state: ArrayState


def find_onnx_reference(model: OnnxModel, x: Tensor, notation: str | None = None) -> OnnxReference:
    """Find out how `model` is run.

    Args:
        x: (B, T, ...), a piece of the example.
        notation: the `--call` that the user gave; None: found out.
    Raises:
        CallError: no way works (each with its reason), or several do.
    """
    bindings = [read_binding(model, notation)] if notation else propose_bindings(model)
    probe = _probe(x.numpy())
    guesses: list[_Guess] = []
    reasons: list[str] = []
    for binding in bindings:
        way = f"  {binding.notation(model)}"
        try:
            found = _x_layouts(model, binding, probe)
        except CallError as error:
            reasons.append(f"{way}: {error}")
            continue
        for axes in found:
            where = f"{way}, {where_axes('x', axes)}"
            try:
                calls = list(_calls(model, binding, axes))
            except CallError as error:
                reasons.append(f"{where}: {error}")
                continue
            _try_all(calls, probe, where, guesses, reasons)
    return OnnxReference(_choose(model, guesses, reasons, tuple(probe.shape[2:])))


def _choose(
    model: OnnxModel, guesses: Sequence[_Guess], reasons: Sequence[str], features: tuple[int, ...]
) -> FileCall:
    chosen = [g for g in guesses if g.counts] or list(guesses)
    if not chosen:
        tried = "\n".join(dict.fromkeys(reasons))
        raise CallError(
            f"no way was found to run {model.name} with x of {features} features a step; "
            f'{list_ports(model)}; tried:\n{tried}\nSay it by place: --call "x, h, c -> y, h, c", '
            "a number for an input with one value, as in `sr=16000`"
        )
    others = [g for g in chosen[1:] if not _same(chosen[0], g)]
    if not others:
        return chosen[0].call
    ways = dict.fromkeys(g.call.binding.notation(model) for g in [chosen[0], *others])
    if len(ways) > 1:
        listed = "\n".join(f'  --call "{way}"' for way in ways)
        raise CallError(
            f"{model.name} can be run in several ways; choose one:\n{listed}\n{list_ports(model)}"
        )
    listed = "\n".join(f"  {OnnxReference(g.call).describe()}" for g in [chosen[0], *others])
    raise CallError(
        f"{model.name}: its axes can be read in several ways:\n{listed}\nExport it with dynamic "
        "axes for batch and time, or with a fixed size for all others"
    )


def _probe(x: Array) -> Array:
    """(3, 5, ...) of different rows."""
    flat = x.reshape(-1, *x.shape[2:])
    index = np.arange(PROBE_ROWS[-1] * PROBE_STEPS[0]) % len(flat)
    return flat[index].reshape(PROBE_ROWS[-1], PROBE_STEPS[0], *x.shape[2:])


def _x_layouts(model: OnnxModel, binding: Binding, probe: Array) -> list[Axes]:
    """The ways to read the axes of x."""
    x = next(value for value in model.inputs if value.name == binding.x)
    features = probe.shape[2:]
    if (probe.dtype.kind == "i") != x.dtype.startswith("int"):
        raise CallError(f"the example is {probe.dtype}, the file's x is {x}")
    found = list(_x_axes(x, features))
    if not found:
        raise CallError(
            f"x is {x}, which is no batch and time with {features} features; give an example with "
            "the file's features"
        )
    return found


def _calls(model: OnnxModel, binding: Binding, axes: Axes) -> Iterator[FileCall]:
    """The ways to read the axes of the states beside those of x; y's are still open."""
    ins = {value.name: value for value in model.inputs}
    x = ins[binding.x]
    rows = _rows(axes, x, [ins[s.input] for s in binding.states])
    options = [
        [
            FileState(s, StateSpec(s.name, shape), Axes(at, None), ins[s.input].dtype)
            for at, shape in _state_axes(ins[s.input], x, axes, rows)
        ]
        for s in binding.states
    ]
    for states in itertools.product(*options):
        dim = 1 if axes.time is None else x.shape[axes.time]
        steps = dim if isinstance(dim, int) else None
        yield FileCall(model, model, binding, axes, Axes(None, None), states, rows, steps, False)


def _x_axes(x: FileValue, features: tuple[int, ...]) -> Iterator[Axes]:
    """Where batch and time may be, so that the features are left; last if they can be."""
    rank = len(x.shape)
    places: list[int | None] = [*range(rank), None]
    found = []
    for batch, time in itertools.product(places, places):
        taken = {batch, time} - {None}
        rest = [axis for axis in range(rank) if axis not in taken]
        if len(taken) != rank - len(features) or (batch == time and batch is not None):
            continue
        if all(
            x.shape[a] == n or not isinstance(x.shape[a], int)
            for a, n in zip(rest, features, strict=True)
        ):
            is_last = rest == list(range(len(taken), rank))
            found.append((is_last, Axes(batch, time)))
    best = any(is_last for is_last, _ in found)
    yield from (axes for is_last, axes in found if is_last == best)


def _rows(axes: Axes, x: FileValue, states: Sequence[FileValue]) -> int | None:
    """The batch at which the file is fixed; None: it is free."""
    if axes.batch is None:
        return 1
    dim = x.shape[axes.batch]
    if isinstance(dim, int):
        return dim
    return None if all(any(not isinstance(d, int) for d in s.shape) for s in states) else 1


def _state_axes(
    state: FileValue, x: FileValue, axes: Axes, rows: int | None
) -> list[tuple[int | None, tuple[int, ...]]]:
    """Where a state's batch may be, and its shape without."""
    free = [axis for axis, dim in enumerate(state.shape) if not isinstance(dim, int)]
    if len(free) > 1 and axes.batch is not None:
        name = x.shape[axes.batch]
        free = [axis for axis in free if name and state.shape[axis] == name]
        if len(free) != 1:
            raise CallError(f"{state} has several free axes; fix those that are not the batch's")
    fixed = [axis for axis, dim in enumerate(state.shape) if dim == rows]
    places: list[int | None] = [*(free or fixed)]
    if rows == 1 and not free:  # all axes of size 1 are alike; (layers, batch, hidden) in the wild
        places = [1 if 1 in fixed and len(state.shape) > 2 else fixed[0]] if fixed else [None]
    if not places:
        raise CallError(f"{state} has no axis for the batch of {rows or 'x'}")
    sizes = [dim for dim in state.shape if isinstance(dim, int)]
    if len(sizes) < len(state.shape) - 1:
        raise CallError(f"{state} has several free axes; fix those that are not the batch's")
    return [
        (at, tuple(d for axis, d in enumerate(state.shape) if axis != at and isinstance(d, int)))
        for at in places
    ]


def _try_all(
    calls: Sequence[FileCall], probe: Array, where: str, guesses: list[_Guess], reasons: list[str]
) -> None:
    """Run the file in these ways; what works goes to `guesses`."""
    for call in calls:
        try:
            guesses.append(_try_fixed(call, probe))
        except Exception as error:  # ONNX Runtime has no common base for what it raises
            reasons.append(f"{where}: {str(error).splitlines()[0]}")


def _try_fixed(call: FileCall, probe: Array) -> _Guess:
    """Run it; where the file is fixed at several steps, also in copies of one step."""
    if call.x.time is None or call.steps in (None, 1):
        return _try(call, probe)
    proto = with_input_sizes(call.model.proto, {(call.binding.x, call.x.time): 1})
    guess: _Guess | None = None
    fault: Exception | None = None
    for copy in without_size(proto, call.steps or 1, 1):
        try:
            guess = _try(replace(call, single=OnnxModel(call.model.name, copy)), probe)
        except Exception as error:  # ONNX Runtime has no common base for what it raises
            fault = fault or error
            continue
        if guess.counts:
            break
    if guess is None:
        raise CallError(
            f"it is fixed at {call.steps} steps, and cannot be taken to one ({fault}); export it "
            "with a dynamic time axis, or with an example of one step"
        )
    return guess


def _try(call: FileCall, probe: Array) -> _Guess:
    """Run it: y's axes, and whether rows and chunks matter."""
    start = random_state(call, len(probe))
    call = replace(call, y=y_axes(call, probe, start))
    if call.y.time is None and call.x.time is not None and call.steps is None:
        call = replace(call, one_by_one=True)
    y, state = call.run(probe, start)
    for s in call.states:
        if state[s.spec.name].shape != start[s.spec.name].shape:
            raise CallError(
                f"state `{s.spec.name}` goes in as {start[s.spec.name].shape} and comes out as "
                f"{state[s.spec.name].shape}, batch first"
            )
    pieces = [call.run(probe[b : b + 1], _rows_of(start, b)) for b in range(len(probe))]
    counts = all(is_close(y[b : b + 1], piece[0]) for b, piece in enumerate(pieces))
    first, between = call.run(probe[:, :2], start)
    second, last = call.run(probe[:, 2:], between)
    counts &= is_close(np.concatenate([first, second], axis=1), y)
    counts &= all(is_close(last[name], state[name]) for name in state)
    return _Guess(call, counts and _agrees_with_itself(call, probe, start), y, state)


def _agrees_with_itself(call: FileCall, probe: Array, start: ArrayState) -> bool:
    """Many steps in one call of the file leave the state that single steps leave."""
    if not call.runs_one_step or call.steps == 1 or call.x.time is None:
        return True
    count = call.steps or probe.shape[1]
    x = probe[:, np.arange(count) % probe.shape[1]]
    _, single = call.run(x, start)
    _, whole = replace(call, one_by_one=False).run(x, start, as_it_is=True)
    return all(is_close(single[name], whole[name]) for name in single)


def y_axes(call: FileCall, probe: Array, start: ArrayState) -> Axes:
    """The axes of y that grow with the rows and with the steps; of size 1 where these are fixed."""

    def shape(rows: int, steps: int, as_it_is: bool = True) -> tuple[int, ...]:
        x = probe[:rows, np.arange(steps) % probe.shape[1]]
        return call.call(x, _rows_of(start, *range(rows)), as_it_is)[0].shape

    rows = call.rows or PROBE_ROWS[0]
    if rows > len(probe):
        index = np.arange(rows) % len(probe)
        probe, start = probe[index], {name: value[index] for name, value in start.items()}
    steps = call.steps or PROBE_STEPS[0]
    seen = shape(rows, steps)
    time = None
    if call.x.time is not None and steps == 1:
        time = call.x.time if seen[call.x.time : call.x.time + 1] == (1,) else None
    elif call.x.time is not None:
        time = _differs(seen, shape(rows, 1, False) if call.steps else shape(rows, PROBE_STEPS[1]))
    if call.rows is None:
        return Axes(_differs(seen, shape(PROBE_ROWS[1], steps)), time)
    places = [call.x.batch or 0, *range(len(seen))]
    fitting = [at for at in places if at != time and seen[at : at + 1] == (rows,)]
    return Axes(fitting[0] if fitting else None, time)


def _differs(one: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    if len(one) != len(other):
        raise CallError(f"y has shape {one}, and {other} with another batch or number of steps")
    found = [axis for axis, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    if len(found) > 1:
        raise CallError(f"y has shape {one}, and {other} with another batch or number of steps")
    return found[0] if found else None


def random_state(call: FileCall, rows: int) -> ArrayState:
    rng = np.random.default_rng(0)
    return {
        s.spec.name: rng.uniform(-1, 1, (rows, *s.spec.shape)).astype(np.float32)
        if s.is_float
        else np.zeros((rows, *s.spec.shape), np.int64)
        for s in call.states
    }


def _rows_of(state: ArrayState, *rows: int) -> ArrayState:
    return {name: value[list(rows)] for name, value in state.items()}


def is_close(one: Array, other: Array) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=CLOSE, atol=CLOSE)


def _same(one: _Guess, other: _Guess) -> bool:
    """The same numbers; where an axis of size 1 is called batch or time does not matter."""
    rows, steps = one.y.shape[:2]
    size = rows * steps
    pairs = [(one.y.reshape(size, -1), other.y.reshape(size, -1))]
    if [s.bound for s in one.call.states] != [s.bound for s in other.call.states]:
        return False
    pairs += [(v.reshape(rows, -1), other.state[n].reshape(rows, -1)) for n, v in one.state.items()]
    return all(is_close(a, b) for a, b in pairs)
