"""A torch module as a reference: how it is called, found out by calling it.

How (`Call`), and where its batch and time axes lie, is found out with batches of 2 and of 3, with
5 steps, and the axes that grow are the batch's. What works in more than one way is an error that
lists the ways.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from export.call import Call, Tree, leaves, parse_call
from export.errors import CallError
from export.lift import Lifted
from export.reference import Reference, State, StateSpec

COMMON_CALLS = (  # most common first, as read in public implementations
    "X, (h, c)=None -> Y, (h, c)",
    "x, (h, c) -> h, c",
    "X, h=None -> Y, h",
    "x, h -> h",
    "x, (h, c) -> y, (h, c)",
    "x, h -> y, h",
    "x, h, c -> h, c",
)
HIDDEN_STATE = ("X -> Y", "X -> y")  # then the states of its torch layers are lifted out
PROBE_BATCHES, PROBE_STEPS = (2, 3), 5  # three different numbers, so that no axis is mistaken


PREFIXES = 12  # of a module that gives its last step only, each a call on all before it


@dataclass(frozen=True)
class Outside:
    """A state as the module takes it: where its batch axis lies."""

    spec: StateSpec
    batch_axis: int


class CalledModule(Reference):
    """A module that was found to work when called like `call`."""

    def __init__(
        self, module: nn.Module, call: Call, time_axis: int, outside: tuple[Outside, ...]
    ) -> None:
        self.module = module
        self.call = call
        self.time_axis = time_axis  # of X and Y outside: 0 or 1; 1 where there is none
        self._outside = outside

    @property
    def name(self) -> str:
        module = self.module.module if isinstance(self.module, Lifted) else self.module
        return type(module).__name__

    @property
    def mode(self) -> Literal["causal"]:
        return "causal"

    @property
    def states(self) -> tuple[StateSpec, ...]:
        return tuple(state.spec for state in self._outside)

    @property
    def axis_sizes(self) -> set[int]:
        tensors = {n for value in self.module.state_dict().values() for n in value.shape}
        return tensors | {n for spec in self.states for n in spec.shape}

    def describe(self) -> str:
        axes = ("; X is (time, batch, ...)", "; X is (batch, time, ...)")[self.time_axis]
        return self.call.text + (axes if self.call.is_sequence else "")

    def initial(self, batch: int) -> State:
        return {s.name: torch.zeros(batch, *s.shape) for s in self.states}

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.call.is_sequence and not self.call.is_last_only:
            y, state = self._call(x.movedim(1, self.time_axis), state)
            return y.movedim(self.time_axis, 1), state
        ys = []
        for t in range(x.shape[1]):
            y, state = self._call(self._piece(x, t, t + 1), state)
            ys.append(y)
        return torch.stack(ys, dim=1), state

    def whole_steps(self, steps: int) -> Sequence[int] | None:
        if not self.call.is_last_only:
            return None
        drawn = torch.randint(0, steps, (PREFIXES,), generator=torch.Generator().manual_seed(0))
        return sorted({0, min(1, steps - 1), steps - 1, *drawn.tolist()})

    def whole(self, x: Tensor, steps: Sequence[int]) -> Tensor:
        """The whole sequence in one call where the module takes one; for an output of the last
        step alone, one call for each of the steps, on all that precedes it.
        """
        start: State = {} if self.call.starts_itself else self.initial(x.shape[0])
        if self.call.is_last_only:
            calls = (self._call(self._piece(x, 0, t + 1), start)[0] for t in steps)
            return torch.stack(list(calls), dim=1)
        if self.call.is_sequence:
            y, _ = self._call(x.movedim(1, self.time_axis), start)
            return y.movedim(self.time_axis, 1)[:, list(steps)]
        return self.run(x, start or self.initial(x.shape[0]))[0][:, list(steps)]

    def what_looks_ahead(self) -> str:
        names = [n for n, m in self.module.named_modules() if getattr(m, "bidirectional", False)]
        both = [f"`{name.removeprefix('module.') or 'the module'}`" for name in names]
        if both:
            return f"{' and '.join(both)} is bidirectional: it looks ahead"
        return "It looks ahead, or keeps state that it does not return"

    def _piece(self, x: Tensor, start: int, stop: int) -> Tensor:
        if self.call.is_sequence:
            return x[:, start:stop].movedim(1, self.time_axis)
        return x[:, start]

    def _call(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One call of the module; without a state it starts by itself."""
        values: dict[str, Tensor | None] = {
            s.spec.name: state[s.spec.name].movedim(0, s.batch_axis) if state else None
            for s in self._outside
        }
        values |= {"x": x, "X": x}
        returned = self.module(*(_fill(tree, values) for tree in self.call.arguments))
        found = dict(_match(self.call.results, returned))
        out = {s.spec.name: found[s.spec.name].movedim(s.batch_axis, 0) for s in self._outside}
        return found[self.call.output], out


def find_call(module: nn.Module, x: Tensor, notation: str | None = None) -> CalledModule:
    """Find out how `module` is called.

    Args:
        module: in eval mode.
        x: (B, T, ...), a piece of the example; its features and dtype count.
        notation: the `--call` that the user gave; None: the common ones are tried.
    Raises:
        CallError: none works (each with its reason), or several do.
    """
    texts = (notation,) if notation else COMMON_CALLS
    found: list[CalledModule] = []
    reasons: list[str] = []
    for text in texts:
        if text not in HIDDEN_STATE:
            _try(module, x, parse_call(text), found, reasons)
    if not found and (notation is None or notation in HIDDEN_STATE):
        for text in (notation,) if notation else HIDDEN_STATE:
            if not found:  # a module of one output a step also has a last one
                _try_lifted(module, x, text, found, reasons)
    if len(found) == 1:
        return found[0]
    if not found:
        raise CallError(
            f"no way was found to call {type(module).__name__} with x of "
            f"{tuple(x.shape[2:])} features a step; tried:\n"
            + "\n".join(dict.fromkeys(reasons))
            + '\nSay how it is called, for example --call "x, (h, c) -> h, c"'
        )
    ways = "\n".join(f'  --call "{r.call.text}"' for r in found)
    raise CallError(f"{type(module).__name__} can be called in several ways; choose one:\n{ways}")


def _try(
    module: nn.Module, x: Tensor, call: Call, found: list[CalledModule], reasons: list[str]
) -> None:
    """Call `module` in this way, time or batch first; what works goes to `found`."""
    for time_axis in (1, 0) if call.is_sequence else (1,):
        try:
            found.append(_probe(module, x, call, time_axis))
        except Exception as error:  # whatever the user's code raises is the reason
            reasons.append(f"  {call.text}: {_first_line(error)}")


def _try_lifted(
    module: nn.Module, x: Tensor, text: str, found: list[CalledModule], reasons: list[str]
) -> None:
    """The same for a module that hides its states, with these lifted out."""
    try:
        lifted = Lifted(module, _probe_input(x, PROBE_BATCHES[0]))
    except Exception as error:  # whatever the user's code raises is the reason
        reasons.append(f"  {text}: {_first_line(error)}")
        return
    names = ", ".join(lifted.state_names)
    output = text[-1]
    call = parse_call(f"X, {names} -> {output}, {names}")
    told = f"{text}, with its state {names} lifted out"
    _try(lifted.eval(), x, replace(call, text=told, starts_itself=True), found, reasons)


def _probe(module: nn.Module, x: Tensor, call: Call, time_axis: int) -> CalledModule:
    errors: list[Exception] = []
    for shapes in _state_shapes(module, x, call, time_axis):
        try:
            reference = CalledModule(module, call, time_axis, shapes)
            for batch in PROBE_BATCHES:
                _check_shapes(reference, _probe_input(x, batch), batch)
            return reference
        except Exception as error:
            errors.append(error)
    raise errors[0] if errors else CallError("no state shape fits")


def _probe_input(x: Tensor, batch: int) -> Tensor:
    flat = x.reshape(-1, *x.shape[2:])
    index = torch.arange(batch * PROBE_STEPS) % flat.shape[0]
    return flat[index].reshape(batch, PROBE_STEPS, *x.shape[2:])


def _state_shapes(
    module: nn.Module, x: Tensor, call: Call, time_axis: int
) -> Iterator[tuple[Outside, ...]]:
    if call.starts_itself:
        yield _returned_states(module, x, call, time_axis)
        return
    for size in _hidden_sizes(module, x):
        yield tuple(Outside(StateSpec(name, (size,)), 0) for name in call.states)
        yield tuple(Outside(StateSpec(name, (1, size)), 1) for name in call.states)


def _hidden_sizes(module: nn.Module, x: Tensor) -> list[int]:
    """Sizes that a state may have: an axis of a weight, a gate's share of it, or it without x."""
    axes = {n for value in module.state_dict().values() for n in value.shape}
    shares = {n // k for n in axes for k in (4, 3, 2) if n % k == 0}
    width = x.shape[-1] if x.ndim > 2 else 0
    beside_x = {n - width for n in axes if n > width}
    return [*sorted(axes), *sorted((shares | beside_x) - axes)]


def _returned_states(
    module: nn.Module, x: Tensor, call: Call, time_axis: int
) -> tuple[Outside, ...]:
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in call.states}
    for batch in PROBE_BATCHES:
        outside = _probe_input(x, batch).movedim(1, time_axis)
        values = dict.fromkeys(call.states) | {"x": outside, "X": outside}
        arguments = (_fill(tree, values) for tree in call.arguments)
        with torch.no_grad():
            returned = dict(_match(call.results, module(*arguments)))
        for name in call.states:
            shapes[name].append(tuple(returned[name].shape))
    return tuple(_compare(name, *pair) for name, pair in shapes.items())


def _compare(name: str, small: tuple[int, ...], large: tuple[int, ...]) -> Outside:
    grown = [i for i, (a, b) in enumerate(zip(small, large, strict=True)) if a != b]
    if len(grown) != 1 or (small[grown[0]], large[grown[0]]) != PROBE_BATCHES:
        raise CallError(
            f"state `{name}` has shape {small} for a batch of {PROBE_BATCHES[0]} and {large} "
            f"for {PROBE_BATCHES[1]}; no one axis is the batch"
        )
    axis = grown[0]
    return Outside(StateSpec(name, small[:axis] + small[axis + 1 :]), axis)


def _check_shapes(reference: CalledModule, x: Tensor, batch: int) -> None:
    with torch.no_grad():
        y, state = reference.run(x, reference.initial(batch))
    if tuple(y.shape[:2]) != (batch, PROBE_STEPS):
        raise CallError(f"y has shape {tuple(y.shape)}, expected ({batch}, {PROBE_STEPS}, ...)")
    for spec in reference.states:
        if tuple(state[spec.name].shape) != (batch, *spec.shape):
            raise CallError(
                f"state `{spec.name}` went in as {(batch, *spec.shape)} "
                f"and came out as {tuple(state[spec.name].shape)}"
            )


def _fill(tree: Tree, values: Mapping[str, Tensor | None]) -> object:
    """The argument for `tree`; None for a group of states that are all None."""
    if isinstance(tree, str):
        return values[tree]
    filled = tuple(_fill(branch, values) for branch in tree)
    return None if all(part is None for part in filled) else filled


def _match(results: tuple[Tree, ...], returned: object) -> Iterator[tuple[str, Tensor]]:
    """Pair the names of `results` with what the module returned; one name stands for the whole."""
    if len(results) == 1 and isinstance(results[0], str):
        yield from _match_tree(results[0], returned)
    else:
        yield from _match_tree(results, returned)


def _match_tree(tree: Tree, returned: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, str):
        if not isinstance(returned, Tensor):
            raise CallError(f"`{tree}` came back as {type(returned).__name__}, expected a tensor")
        yield tree, returned
        return
    if not isinstance(returned, tuple | list) or len(returned) != len(tree):
        got = f"{len(returned)} values" if isinstance(returned, tuple | list) else "one value"
        raise CallError(f"expected {len(tree)} values for ({', '.join(leaves(tree))}), got {got}")
    for branch, value in zip(tree, returned, strict=True):
        yield from _match_tree(branch, value)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
