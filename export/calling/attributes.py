"""What a module holds besides parameters: taken down, compared, and put back."""

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_TORCHS_OWN = {
    *vars(nn.Module()),
    *("_flat_weights", "_flat_weights_names", "_flat_weight_refs", "_all_weights"),
}
ABSENT = object()

Owner = dict[str, object]  # the __dict__ of a module, or its buffers


class _Held:
    """A value and what is in it, as it was."""

    def __init__(self, value: object) -> None:
        self.value = value
        self._copy = value.detach().clone() if isinstance(value, Tensor) else value
        self._parts: list[tuple[object, _Held]] = []
        if isinstance(value, list | tuple):
            self._parts = [(at, _Held(part)) for at, part in enumerate(value)]
        elif isinstance(value, dict):
            self._parts = [(key, _Held(part)) for key, part in value.items()]
        # Nothing in it can be changed in place.
        self.fixed: bool = not isinstance(value, Tensor | list | dict) and all(
            part.fixed for _, part in self._parts
        )

    def restore(self) -> object:
        """The same object with its old contents."""
        value = self.value
        parts = {key: part.restore() for key, part in self._parts}
        if isinstance(value, list):
            value[:] = parts.values()
        elif isinstance(value, dict):
            value.clear()
            value.update(parts)
        elif isinstance(value, Tensor) and not is_same(value, self._copy):
            value.detach().copy_(self._copy)  # type: ignore[arg-type]
        return value


class Attributes:
    """What a module and its parts hold besides parameters and parts, as it was.

    It is put back after each of thousands of calls, of which most change nothing: that has to be
    cheap.
    """

    def __init__(self, module: nn.Module) -> None:
        self.owners: list[tuple[str, Owner]] = []
        for path, part in module.named_modules():
            self.owners += [(path, vars(part)), (path, part._buffers)]
        self._held = [
            {key: (_Held(value), copy_of(value)) for key, value in own_of(owner).items()}
            for _, owner in self.owners
        ]
        self._keys = [set(owner.keys()) for _, owner in self.owners]
        self._fixed = [{k: h.value for k, (h, _) in held.items() if h.fixed} for held in self._held]
        self._other = [[(k, h) for k, (h, _) in held.items() if not h.fixed] for held in self._held]

    def restore(self) -> None:
        """Put everything back, in place where it was changed in place."""
        parts = zip(self.owners, self._held, self._keys, self._fixed, self._other, strict=True)
        for (_, owner), held, keys, fixed, other in parts:
            if owner.keys() != keys:  # always so of a script module's, whose keys are a list
                for key in [key for key in own_of(owner) if key not in held]:
                    del owner[key]
            if isinstance(owner, dict):
                owner.update(fixed)
            else:
                for key, kept in fixed.items():
                    owner[key] = kept
            for key, value in other:
                owner[key] = value.restore()

    def changed(self) -> list[tuple[int, str]]:
        """(owner, key) of what is not as it was."""
        return [
            (at, key)
            for at, ((_, owner), held) in enumerate(zip(self.owners, self._held, strict=True))
            for key in dict.fromkeys([*held, *own_of(owner)])
            if not is_same(held[key][1] if key in held else ABSENT, owner.get(key, ABSENT))
        ]


def own_of(owner: Owner) -> dict[str, object]:
    """What is the user's in it, not torch's."""
    return {key: value for key, value in owner.items() if key not in _TORCHS_OWN}


def copy_of(value: object) -> object:
    """The same tree with tensors of its own memory."""
    return pytree.tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, value)


def is_same(before: object, after: object) -> bool:
    """Trees of equal shape with equal tensors and numbers; other things by identity."""
    if isinstance(before, Tensor):
        return _same_leaf(before, after)
    a, tree_a = pytree.tree_flatten(before)
    b, tree_b = pytree.tree_flatten(after)
    return tree_a == tree_b and all(map(_same_leaf, a, b))


def _same_leaf(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        # Most are equal as they are; NaN, which is unequal to itself, takes longer.
        return torch.equal(a, b) or torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    if isinstance(a, int | float | str) and type(a) is type(b):
        return bool(a == b)
    return a is b
