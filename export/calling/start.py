"""The state from which a module starts by itself: zeros, ones, or one of its own tensors.

Where the module is given None it starts from something; which it is, is found by giving it the
candidates and comparing what comes back.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from export.calling.attributes import Attributes
from export.calling.shapes import Outside
from export.errors import CarryError
from export.reference import State

MAX_COMBINATIONS = 400  # of candidates for several states at once
ROUNDS = 3  # of choosing the best candidate for one state after the other
TOLERANCE = 1e-5  # of what comes back, relative to its largest value; float32 rounds at 6e-8

Answers = Sequence[Tensor]  # y and the states after it, for each of the inputs
WAY_OUT = (
    "Give the module a method `init_state(batch)` that returns the states to start from, in their "
    "order, and export calls it; or leave `=None` away in --call, and sessions start from zeros"
)


def find_start(
    module: nn.Module,
    states: Sequence[Outside],
    own: Callable[[], Answers],
    given: Callable[[State], Answers],
    hints: Mapping[str, Sequence[Tensor]],
) -> State:
    """What stands for the module's own start.

    Args:
        states: those that the module starts itself.
        own: what it answers when it starts itself.
        given: what it answers when it starts from name -> (1, ...).
        hints: name -> likely values, (1, ...).
    Returns:
        name -> (1, ...), of the states that do not start from zeros.
    Raises:
        CarryError: none of the candidates is it, or the start is random.
    """
    wanted = own()
    if _distance(own(), wanted) > TOLERANCE:
        raise CarryError(
            "it starts from another state at each call (random numbers?), so nothing can be "
            "proven equal to it; let it start from zeros, or from a state that it was trained with"
        )
    candidates = {
        s.spec.name: [*_plain(s), *hints.get(s.spec.name, ()), *_tensors(module, s)] for s in states
    }
    names = list(candidates)
    zeros = {name: values[0] for name, values in candidates.items()}
    if _distance(given(zeros), wanted) <= TOLERANCE:
        return {}

    def error(chosen: State) -> float:
        return _distance(given(chosen), wanted)

    found = _search(names, candidates, error)
    if found is None:
        raise CarryError(
            f"the state it starts from ({', '.join(names)}) is neither zeros nor ones nor one of "
            f"its own tensors; it may be computed, perhaps from x. {WAY_OUT}"
        )
    return {name: value for name, value in found.items() if bool(value.any())}


def _search(
    names: list[str], candidates: Mapping[str, list[Tensor]], error: Callable[[State], float]
) -> State | None:
    combinations = 1
    for values in candidates.values():
        combinations *= len(values)
    if combinations <= MAX_COMBINATIONS:
        for one in product(*candidates.values()):
            chosen = dict(zip(names, one, strict=True))
            if error(chosen) <= TOLERANCE:
                return chosen
        return None
    chosen = {name: values[0] for name, values in candidates.items()}
    for _ in range(ROUNDS):
        for name in names:
            errors = [error({**chosen, name: value}) for value in candidates[name]]
            best = min(range(len(errors)), key=errors.__getitem__)
            chosen[name] = candidates[name][best]
            if errors[best] <= TOLERANCE:
                return chosen
    return None


def _plain(state: Outside) -> list[Tensor]:
    shape = (1, *state.spec.shape)
    return [torch.zeros(shape), torch.ones(shape)]


def _tensors(module: nn.Module, state: Outside) -> list[Tensor]:
    """The module's own tensors that can stand for the state, and their tanh; likelier first."""
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    for path, owner in Attributes(module).owners:
        named |= {f"{path}.{k}": v for k, v in owner.items() if isinstance(v, Tensor)}
    likely = sorted(named, key=lambda n: not _is_named_as_start(n, state.spec.name))
    found: list[Tensor] = []
    for name in likely:
        value = named[name].detach()
        if value.is_floating_point():
            found += fitted(value.float(), state)
    return [*found, *map(torch.tanh, found)]


def _is_named_as_start(name: str, state: str) -> bool:
    last = name.rpartition(".")[2].lower()
    return "init" in last or last.strip("_").startswith((f"{state}0", f"{state}_0", "h0", "c0"))


def fitted(value: Tensor, state: Outside) -> list[Tensor]:
    """`value` broadcast to (1, ...), read with and without a batch axis of its own; or nothing."""
    shape = state.spec.shape
    readings = [value]
    if state.batch_axis is not None and value.ndim == len(shape) + 1:
        readings = [value.movedim(state.batch_axis, 0)]
        if readings[0].shape[0] != 1:
            return []
        readings = [readings[0][0]]
    found = []
    for reading in readings:
        for part in (reading, reading.squeeze()):
            try:
                found.append(part.broadcast_to(shape).unsqueeze(0).clone())
                break
            except RuntimeError:  # of another shape
                continue
    return found


def _distance(got: Answers, wanted: Answers) -> float:
    """The greatest difference, relative to the largest value wanted."""
    if [a.shape for a in got] != [b.shape for b in wanted]:
        return float("inf")
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        difference = torch.nan_to_num(
            a - b, nan=0.0 if bool(a.isnan().eq(b.isnan()).all()) else 1e9
        )
        worst = max(worst, float(difference.abs().max()) / scale if b.numel() else 0.0)
    return worst
