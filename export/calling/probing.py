"""Does a module work when called in this way? Found out by calling it.

Batches of 2 and of 3, with 5 steps: the axes that grow are the batch's. A way counts if the states
come back in the shape in which they went in, whatever the chunk's length, and no row's result
depends on another row.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from export.calling.attributes import Attributes
from export.calling.begin import find_beginnings, tensors_of
from export.calling.call import OUTPUTS, Call
from export.calling.extras import Forms, candidate_forms
from export.calling.kept import find_kept
from export.calling.module import CalledModule, Layout
from export.calling.shapes import Outside, begun_shapes, compare, guessed_shapes
from export.calling.start import find_start, fitted
from export.errors import CallError, CarryError, MixingError, StructureError
from export.reference import State

BATCHES, STEPS = (2, 3), 5  # three different numbers, so that no axis is mistaken
SHORT = 3  # another number of steps: a state's shape must not depend on it
Raised = dict[Hashable, Exception]  # what the module was given -> what it raised
SAME = 6  # guesses that fail with the same words
ROW_TOLERANCE = 1e-4  # of a row alone and in a batch: float32 products in another order


@dataclass(frozen=True)
class Way:
    """Where the axes of x lie outside."""

    time_axis: int = 1
    is_batch_last: bool = False
    is_row: bool = False  # one row a call
    is_unbatched: bool = False  # and that without an axis of the batch

    @property
    def batches(self) -> tuple[int, ...]:
        return (1,) if self.is_row else BATCHES

    def layout(self) -> Layout:
        return Layout(
            is_batch_last=self.is_batch_last, is_row=self.is_row, is_unbatched=self.is_unbatched
        )


def ways_of(call: Call, rows: bool) -> Iterator[Way]:
    """The ways in which x may lie, likelier ones first; `rows`: those of one row a call."""
    if call.is_sequence:
        axes = (1, 0) if call.time_axis is None else (call.time_axis,)
        if rows and call.time_axis is None:
            yield Way(is_row=True, is_unbatched=True)
        for axis in axes:
            yield Way(axis, is_row=rows)
    else:
        if rows:
            yield Way(is_row=True, is_unbatched=True)
        yield Way(is_row=rows)
        yield Way(is_row=rows, is_batch_last=True)


def probe(
    module: nn.Module, x: Tensor, call: Call, way: Way, raised: Raised | None = None
) -> CalledModule:
    """Call `module` in this way.

    Args:
        x: (B, T, ...), a piece of the example.
        raised: what the module raised before, given the same arguments; is added to.
    Raises:
        CallError, or what the module raises: it does not work so.
    """
    pristine = Attributes(module)
    raised = {} if raised is None else raised
    errors: list[Exception] = []
    inputs = {batch: probe_input(x, batch) for batch in way.batches}
    for forms in candidate_forms(call):
        bare = CalledModule(module, call, way.time_axis, (), layout=_with_forms(way, forms))
        try:
            for group in _state_shapes(bare, inputs, way.is_row):
                first = len(errors)
                for outside in group:
                    given = _given(call, way, forms, outside)
                    if given in raised:
                        errors.append(raised[given])
                    else:
                        one = _Probe(bare, outside, inputs)
                        try:
                            return one.reference()
                        except CarryError:
                            raise
                        except Exception as error:  # whatever the user's code raises is the reason
                            errors.append(error)
                            if not one.has_answered and not isinstance(error, CallError):
                                raised[given] = error
                        finally:
                            pristine.restore()
                    if _is_hopeless(errors[first:]):
                        break
        except CarryError:
            raise
        except Exception as error:  # the same, of a module that starts itself
            errors.append(error)
        finally:
            pristine.restore()
        if errors and isinstance(errors[0], StructureError):
            break
    mixing = [error for error in errors if isinstance(error, MixingError)]
    raise [*mixing, *errors, CallError("no shape of its states fits")][0]


def _given(call: Call, way: Way, forms: Forms, outside: tuple[Outside, ...]) -> Hashable:
    """What the arguments of the first call are: x is the same in all, and states are zeros. Calls
    that differ in what comes back, or is taken for the output, give the same.
    """
    shapes = tuple((state.spec.shape, state.batch_axis, state.dtype) for state in outside)
    named = (*call.widths.items(), *forms.items())
    return call.arguments, call.optional, call.made, named, way, shapes


def _is_hopeless(errors: list[Exception]) -> bool:
    """States of another size will not help either: a product that they are not in fails."""
    if isinstance(errors[-1], StructureError | TypeError):
        return True
    said = [str(error) for error in errors[:SAME]]
    shapes = "shapes cannot be multiplied" in said[-1] or "Dimension out of range" in said[-1]
    return len(said) == SAME and shapes and len(set(said)) == 1


def probe_input(x: Tensor, batch: int) -> Tensor:
    """(batch, STEPS, ...) of the example."""
    flat = x.reshape(-1, *x.shape[2:])
    index = torch.arange(batch * STEPS) % flat.shape[0]
    return flat[index].reshape(batch, STEPS, *x.shape[2:])


def _with_forms(way: Way, forms: Forms) -> Layout:
    return replace(way.layout(), forms=dict(forms))


def _state_shapes(
    bare: CalledModule, inputs: dict[int, Tensor], rows: bool
) -> Iterator[list[tuple[Outside, ...]]]:
    call = bare.call
    if not call.states:
        yield [()]
        return
    if call.optional.issuperset(call.states):
        with torch.no_grad():
            returned = [bare.raw(_piece(call, x), {})[0] for x in inputs.values()]
        yield [tuple(compare(n, [r[n] for r in returned], [*inputs]) for n in call.states)]
        return
    given = {batch: bare.give_x(_piece(call, x)) for batch, x in inputs.items()}
    yield list(begun_shapes(bare.module, call, given))
    x = next(iter(inputs.values()))
    yield from guessed_shapes(bare.module, call, x, rows)


def _piece(call: Call, x: Tensor) -> Tensor:
    return x if call.is_sequence else x[:, :1]


class _Probe:
    """One way of calling, with shapes for all its states."""

    def __init__(
        self, bare: CalledModule, outside: tuple[Outside, ...], inputs: dict[int, Tensor]
    ) -> None:
        self._bare = bare
        self._call = bare.call
        self._inputs = inputs
        self.has_answered = False  # the module has, to a first call
        self._pieces = {batch: _piece(bare.call, x) for batch, x in inputs.items()}
        self._found = self._rebuilt(bare, outside=outside)

    def _rebuilt(self, old: CalledModule, **changed: object) -> CalledModule:
        parts: dict[str, object] = {
            "outside": old.outside,
            "layout": old.layout,
            "kept": old.kept,
            "kept_outside": old.kept_outside,
            "start": old.start,
        }
        return CalledModule(old.module, self._call, old.time_axis, **(parts | changed))  # type: ignore[arg-type]

    def reference(self) -> CalledModule:
        with torch.no_grad():
            if self._call.states:
                for batch in self._inputs:
                    returned = self._raw(batch)
                    self.has_answered = True
                    self._check_raw(returned, batch)
            self.has_answered = True
            self._find_kept()
            if not self._found.states:
                raise CallError("it keeps no state between calls, and returns none")
            self._find_layout()
            for batch in self._inputs:
                self._check_shapes(batch)
            self._check_rows()
            self._find_start()
            self._find_doubling()
        return self._found

    def _raw(self, batch: int) -> dict[str, Tensor]:
        return self._found.raw(self._pieces[batch], self._found.initial(batch))[0]

    def _check_raw(self, returned: dict[str, Tensor], batch: int) -> None:
        for state in self._found.outside:
            wanted = tuple(state.give(torch.zeros(batch, *state.spec.shape)).shape)
            got = tuple(returned[state.spec.name].shape)
            if got != wanted:
                raise CallError(
                    f"state `{state.spec.name}` went in as {wanted} and came out as {got}"
                )

    def _find_kept(self) -> None:
        given = {batch: self._found.give_x(x) for batch, x in self._pieces.items()}
        kept, after = find_kept(self._bare.module, given, self._raw)
        outside = tuple(
            compare(name, [after[batch][name] for batch in given], [*given]) for name in kept.names
        )
        self._found = self._rebuilt(self._found, kept=kept, kept_outside=outside)

    def _find_layout(self) -> None:
        """Where time and batch stand in y, and what is left of it for one row and step."""
        if self._call.output not in OUTPUTS:
            return  # it is a state
        shapes = {batch: self._y_shape(x) for batch, x in self._pieces.items()}
        last = self._pieces[max(shapes)]
        if self._call.is_last_only and self._y_shape(last[:, :SHORT]) != shapes[max(shapes)]:
            raise CallError("y has another shape for a shorter X: it is no last step's; is it Y?")
        batch, shape = max(shapes.items())
        if self._call.output == "Y" and batch > 1 and shape[:1] == (batch * STEPS,):
            layout = replace(self._found.layout, is_y_flat=True, y_shape=shape[1:])
        else:
            y_time, y_shape = _lay(shapes, self._call.output == "Y", self._found.layout)
            layout = replace(self._found.layout, y_time=y_time, y_shape=y_shape)
        self._found = self._rebuilt(self._found, layout=layout)

    def _y_shape(self, x: Tensor) -> tuple[int, ...]:
        with self._found.kept.fresh(len(x), self._found.give_x(x)):
            state = self._found.initial(len(x))
            own = {n: v for n, v in state.items() if n not in self._found.kept.names}
            return tuple(self._found.raw(x, own)[0][self._call.output].shape)

    def _check_shapes(self, batch: int) -> None:
        for steps in (STEPS, SHORT):
            x = self._inputs[batch][:, :steps]
            y, state = self._found.run(x, self._found.initial(batch))
            if tuple(y.shape[:2]) != (batch, steps):
                raise CallError(f"y has shape {tuple(y.shape)}, expected ({batch}, {steps}, ...)")
            for spec in self._found.states:
                if tuple(state[spec.name].shape) != (batch, *spec.shape):
                    raise CallError(
                        f"state `{spec.name}` went in as {(batch, *spec.shape)} "
                        f"and came out as {tuple(state[spec.name].shape)}"
                    )

    def _check_rows(self) -> None:
        """A row of three gives what it gives as one of two, be it one of the first or the last:
        who indexes the batch by mistake reads the first rows, and these stay where they are."""
        if len(self._inputs) == 1:
            return
        few, many = BATCHES
        x, state = self._inputs[many], random_state(self._found, many)
        y, after = self._found.run(x, state)
        for rows in (slice(few), slice(many - few, many)):
            few_y, few_after = self._found.run(x[rows], {n: v[rows] for n, v in state.items()})
            pairs = [(y[rows], few_y), *((after[n][rows], few_after[n]) for n in after)]
            if not all(is_close(a, b) for a, b in pairs):
                raise MixingError(
                    "a row's result depends on the other rows of its batch (a sum, a mean or an "
                    "`if` over the batch?)"
                )

    def _find_start(self) -> None:
        found = self._found
        made = self._begun()
        begun = {n: v for n, v in (made or {}).items() if bool(v.any())}
        starts = [s for s in found.outside if s.spec.name in self._call.optional]
        explicit = {k: v for k, v in begun.items() if k not in self._call.optional}
        found = self._found = self._rebuilt(found, start=explicit)
        starts += found.kept_outside
        if not starts:
            return
        x = self._inputs[max(self._inputs)]
        pieces = [x, _other_input(x)]

        def own() -> list[Tensor]:
            return _flat(found.answer(piece) for piece in pieces)

        def given(state: State) -> list[Tensor]:
            whole = {n: v.repeat(len(x), *[1] * (v.ndim - 1)) for n, v in state.items()}
            start = found.initial(len(x)) | whole
            if self._call.is_last_only:
                return _flat(found.step(piece, start) for piece in pieces)
            return _flat(found.run(piece, start) for piece in pieces)

        hints = {name: [value] for name, value in (begun | self._fresh()).items()}
        try:
            start = find_start(self._bare.module, starts, own, given, hints)
        except CarryError:
            if made is None or found.kept_outside:
                raise
            # It starts from something else, but has a method that says from what to start.
            self._call = replace(self._call, optional=frozenset())
            start, explicit = {}, begun
        self._found = self._rebuilt(found, start={**explicit, **start})

    def _begun(self) -> State | None:
        """What a method as `init_hidden` makes, where it is the same each time."""
        states = self._found.outside
        batch, piece = next(iter(self._pieces.items()))
        x = self._found.give_x(piece)
        for begin in find_beginnings(self._bare.module) if states else ():
            try:
                made, again = (tensors_of(begin.run(batch, x)) for _ in range(2))
                pairs = zip(states, made, strict=True)
                values = {s.spec.name: s.take(value)[:1] for s, value in pairs}
            except Exception:  # not a method for this, or not with these arguments
                continue
            same = all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
            shapes = all(values[s.spec.name].shape[1:] == s.spec.shape for s in states)
            if same and shapes:
                return {name: value.clone() for name, value in values.items()}
        return None

    def _fresh(self) -> State:
        """What a fresh module holds, where it has the state's shape or can be broadcast to it."""
        batch, piece = next(iter(self._pieces.items()))
        with self._found.kept.fresh(batch, self._found.give_x(piece)):
            try:
                held = self._found.kept.read()
            except CallError:  # not the tree that it will be: None, say
                return {}
            found: State = {}
            for state in self._found.kept_outside:
                value = held.get(state.spec.name)
                if value is None:
                    continue
                axis = state.batch_axis
                if axis is not None and value.ndim == len(state.spec.shape) + 1:
                    value = value.narrow(axis, 0, 1)
                readings = fitted(value.detach().float(), state)
                if readings:
                    found[state.spec.name] = readings[0]
        return found

    def _find_doubling(self) -> None:
        """Whether a batch of one breaks it."""
        if len(self._inputs) == 1:
            return
        x = self._inputs[BATCHES[0]]
        state = random_state(self._found, BATCHES[0])
        y, after = self._found.run(x, state)
        try:
            alone, alone_after = self._found.run(x[:1], {n: v[:1] for n, v in state.items()})
            pairs = [(y[:1], alone), *((after[n][:1], alone_after[n]) for n in after)]
            fine = all(is_close(a, b) for a, b in pairs)
        except Exception:  # whatever the user's code raises
            fine = False
        if not fine:
            layout = replace(self._found.layout, doubles=True)
            self._found = self._rebuilt(self._found, layout=layout)


def _lay(
    shapes: dict[int, tuple[int, ...]], is_sequence: bool, layout: Layout
) -> tuple[int | None, tuple[int, ...]]:
    """Y's axis of time, and the shape of one row's y at one step."""
    batch, shape = list(shapes.items())[-1]
    if layout.is_row:
        rest = list(shape)
        while len(rest) > 1 and rest[0] == 1:
            rest.pop(0)
        if not is_sequence:
            return None, tuple(rest)
        if not rest or rest[0] != STEPS:
            raise CallError(f"Y has shape {shape}, expected ({STEPS}, ...) for {STEPS} steps")
        rest.pop(0)
        while len(rest) > 1 and rest[0] == 1:
            rest.pop(0)
        return None, tuple(rest)
    if layout.is_batch_last:
        if shape[-1:] != (batch,):
            raise CallError(f"y has shape {shape}, expected (..., {batch})")
        return None, shape[:-1]
    if not is_sequence:
        if shape[:1] != (batch,):
            raise CallError(f"y has shape {shape}, expected ({batch}, ...)")
        return None, shape[1:]
    for axis, wanted in ((1, (batch, STEPS)), (0, (STEPS, batch))):
        if shape[:2] == wanted:
            return axis, shape[2:]
    raise CallError(f"Y has shape {shape}, expected ({batch}, {STEPS}, ...)")


def random_state(reference: CalledModule, batch: int) -> State:
    """States in (-0.5, 0.5), the same each time; what is no float, as it begins."""
    generator = torch.Generator().manual_seed(0)
    floats = {
        s.spec.name
        for s in (*reference.outside, *reference.kept_outside)
        if s.dtype.is_floating_point
    }
    return {
        name: torch.rand(value.shape, generator=generator) - 0.5 if name in floats else value
        for name, value in reference.initial(batch).items()
    }


def is_close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the order of float32 sums."""
    if a.shape != b.shape:
        return False
    scale = max(1.0, float(torch.nan_to_num(b).abs().max())) if b.numel() else 1.0
    return torch.allclose(a, b, rtol=0, atol=ROW_TOLERANCE * scale, equal_nan=True)


def _other_input(x: Tensor) -> Tensor:
    """Another input of the same kind: the rows and steps of x in another order."""
    return x.flip(0, 1)


def _flat(answers: Iterator[tuple[Tensor, State]]) -> list[Tensor]:
    return [value for y, state in answers for value in (y, *state.values())]
