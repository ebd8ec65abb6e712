"""State that a module keeps on itself: attributes and buffers that change from call to call.

Rules
- A *slot* is an attribute or buffer of the module or a part of it that a call changes.
- A slot is state if what is put there changes y, or another slot that does. Others (a stored
  attention map) are only put back.
- State is set before each call and read after it; the user's module is left as it was.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from export.calling.attributes import ABSENT, Attributes, Owner, copy_of, is_same, own_of
from export.calling.begin import Beginning, find_beginnings, tensors_of
from export.errors import CallError, CarryError

Outcome = Mapping[str, Tensor]  # what one call gave, by name


@dataclass(frozen=True)
class Slot:
    """One attribute that a call changes, and the tree of what it holds after one."""

    owner: Owner
    key: str
    leaves: tuple[object, ...]
    tree: pytree.TreeSpec
    names: tuple[str | None, ...]  # of the leaves; None: no state

    def put(self, values: Mapping[str, Tensor]) -> None:
        parts = [
            copy_of(values[name] if name is not None and name in values else leaf)
            for name, leaf in zip(self.names, self.leaves, strict=True)
        ]
        self.owner[self.key] = pytree.tree_unflatten(parts, self.tree)

    def get(self) -> dict[str, Tensor]:
        leaves, tree = pytree.tree_flatten(self.owner.get(self.key))
        if len(leaves) != len(self.names):
            raise CallError(f"`{self.key}` held {self.tree} and now holds {tree}")
        named = zip(self.names, leaves, strict=True)
        return {n: leaf for n, leaf in named if n is not None and isinstance(leaf, Tensor)}


class Kept:
    """The state that one module keeps on itself; names are in the order of `names`."""

    def __init__(
        self, module: nn.Module, slots: tuple[Slot, ...] = (), begin: Beginning | None = None
    ) -> None:
        self._module = module
        self.slots = slots
        self.begin = begin

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for slot in self.slots for name in slot.names if name is not None)

    @contextmanager
    def held(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """The module with `values` put on it (as it holds them); afterwards it is as before."""
        before = [slot.owner.get(slot.key, ABSENT) for slot in self.slots]
        try:
            for slot in self.slots:
                slot.put(values)
            yield
        finally:
            for slot, value in zip(self.slots, before, strict=True):
                if value is ABSENT:
                    slot.owner.pop(slot.key, None)
                else:
                    slot.owner[slot.key] = value

    def read(self) -> dict[str, Tensor]:
        """What it holds now."""
        return {name: value for slot in self.slots for name, value in slot.get().items()}

    @contextmanager
    def fresh(self, batch: int, x: Tensor) -> Iterator[None]:
        """The module as it begins a sequence by itself; x as it takes it."""
        if not self.slots:
            yield
            return
        pristine = Attributes(self._module)
        try:
            if self.begin:
                _begin(self.begin, batch, x, self._module)
            yield
        finally:
            pristine.restore()


def find_kept(
    module: nn.Module, inputs: Mapping[int, Tensor], call: Callable[[int], Outcome]
) -> tuple[Kept, dict[int, dict[str, Tensor]]]:
    """Find what `module` keeps on itself.

    Args:
        inputs: batch -> x as the module takes it.
        call: one call of the module with a batch of so many rows.
    Returns:
        What is kept, and what it holds after a first call: batch -> name -> tensor.
    Raises:
        CallError: it does not run, or keeps something that cannot be carried.
    """
    pristine = Attributes(module)
    errors: list[Exception] = []
    for begin in (*find_beginnings(module), None):
        try:
            slots: tuple[Slot, ...] = ()
            for batch, x in inputs.items():
                slots = _first_call(module, pristine, begin, batch, x, call) or slots
                pristine.restore()
            if not slots:
                return Kept(module), {}
            slots = _first_call(module, pristine, begin, batch, x, call)  # as at the last batch
            kept = Kept(module, _only_state(module, slots, partial(call, batch)), begin)
            pristine.restore()
            return kept, _after(kept, pristine, inputs, call)
        except CarryError:
            raise
        except Exception as error:  # whatever the user's code raises is the reason
            errors.append(error)
        finally:
            pristine.restore()
    raise errors[-1] if isinstance(errors[-1], CallError) else errors[0]


def _first_call(
    module: nn.Module,
    pristine: Attributes,
    begin: Beginning | None,
    batch: int,
    x: Tensor,
    call: Callable[[int], Outcome],
) -> tuple[Slot, ...]:
    """Begin, call once, and see what changed by it."""
    if begin:
        _begin(begin, batch, x, module)
    begun = Attributes(module)
    call(batch)
    slots = []
    for at, key in begun.changed():
        path, owner = pristine.owners[at]
        leaves, tree = pytree.tree_flatten(owner.get(key))
        stem = f"{path}_{key}".replace(".", "_").strip("_") if path else key.strip("_")
        names = _numbered(stem, len(leaves))
        slots.append(Slot(owner, key, tuple(copy_of(leaf) for leaf in leaves), tree, names))
    return tuple(_short(slots))


def _short(slots: list[Slot]) -> Iterator[Slot]:
    """Slots with the names of their attributes alone, where these are different."""
    keys = [slot.key for slot in slots]
    for slot in slots:
        stem = slot.key.strip("_")
        if keys.count(slot.key) > 1 or stem in ("x", "y", "X", "Y", "lengths"):
            yield slot
            continue
        names = _numbered(stem, len(slot.leaves))
        yield Slot(slot.owner, slot.key, slot.leaves, slot.tree, names)


def _numbered(stem: str, count: int) -> tuple[str, ...]:
    return tuple(f"{stem}_{i}" for i in range(count)) if count > 1 else (stem,)


def _begin(begin: Beginning, batch: int, x: Tensor, module: nn.Module) -> None:
    """Run the method; where it returns a state instead of keeping it, keep it as the user would."""
    before = Attributes(module)
    made = tensors_of(begin.run(batch, x))
    if not made or before.changed():
        return
    for _, owner in before.owners:
        for key, value in list(own_of(owner).items()):
            leaves, tree = pytree.tree_flatten(value)
            held = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            fits = len(held) == len(leaves) == len(made) and not isinstance(value, nn.Parameter)
            if fits and all(a.ndim == b.ndim for a, b in zip(held, made, strict=True)):
                owner[key] = pytree.tree_unflatten(made, tree)
                return


def _only_state(
    module: nn.Module, slots: tuple[Slot, ...], call: Callable[[], Outcome]
) -> tuple[Slot, ...]:
    """The slots, with names only for the leaves that y depends on."""
    everything = Kept(module, slots)
    values = _leaves(slots)
    wanted = _outcome(everything, values, call)
    reaches = {name: _reached(everything, values, name, wanted, call) for name in values}
    state: set[str] = {"y"}
    while True:
        more = {name for name, reached in reaches.items() if reached & state} - state
        if not more:
            break
        state |= more
    for name in state & {*values}:
        if not isinstance(values[name], Tensor):
            raise CarryError(
                f"`{name}` is a Python {type(values[name]).__name__} that changes from call to "
                "call, and the answer depends on it; keep it as a tensor with a batch axis, or "
                "take it as the argument `t` of forward"
            )
    return tuple(
        Slot(s.owner, s.key, s.leaves, s.tree, tuple(n if n in state else None for n in s.names))
        for s in slots
    )


def _leaves(slots: tuple[Slot, ...]) -> dict[str, object]:
    return {
        name: leaf
        for slot in slots
        for name, leaf in zip(slot.names, slot.leaves, strict=True)
        if name is not None and isinstance(leaf, Tensor | int | float)
    }


def _outcome(
    everything: Kept, values: Mapping[str, object], call: Callable[[], Outcome]
) -> dict[str, object]:
    """What one call gives and leaves in the slots when these hold `values`."""
    with everything.held(values):  # type: ignore[arg-type]
        outcome: dict[str, object] = {f"/{k}": v for k, v in call().items()}
        for slot in everything.slots:
            held = pytree.tree_leaves(slot.owner.get(slot.key))
            outcome |= dict(zip([str(n) for n in slot.names], held, strict=False))
    return outcome


def _reached(
    everything: Kept,
    values: Mapping[str, object],
    name: str,
    wanted: Mapping[str, object],
    call: Callable[[], Outcome],
) -> set[str]:
    """The other slots, and "y", that change when `name` does."""
    try:
        got = _outcome(everything, {**values, name: _moved(values[name])}, call)
    except Exception:  # it looks at the value, so the value counts
        return {"y"}
    moved = {key for key in wanted if not is_same(wanted[key], got.get(key, ABSENT))}
    return {"y" if key.startswith("/") else key for key in moved} - {name}


def _moved(value: object) -> object:
    if not isinstance(value, Tensor):
        return value + 1  # type: ignore[operator]
    if value.dtype is torch.bool:
        return ~value
    return value * 0.5 + 0.25 if value.is_floating_point() else value + 1


def _after(
    kept: Kept,
    pristine: Attributes,
    inputs: Mapping[int, Tensor],
    call: Callable[[int], Outcome],
) -> dict[int, dict[str, Tensor]]:
    found = {}
    for batch, x in inputs.items():
        with kept.fresh(batch, x):
            call(batch)
            found[batch] = kept.read()
        pristine.restore()
    return found
