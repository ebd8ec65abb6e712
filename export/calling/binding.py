"""Values to the arguments that a notation spells, and what came back to its names."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from export.calling.call import OUTPUTS, Call
from export.calling.tree import Fixed, Keyed, Listed, Named, Tree, leaves
from export.errors import CallError, StructureError

Values = Mapping[str, Tensor | None]


def fill(call: Call, values: Values) -> tuple[list[object], dict[str, object]]:
    """The positional and the keyword arguments of one call."""
    positional = [_fill(item, values) for item in call.arguments if not isinstance(item, Named)]
    keywords = {i.keyword: _fill(i.tree, values) for i in call.arguments if isinstance(i, Named)}
    return positional, keywords


def _fill(tree: Tree, values: Values) -> object:
    """The argument for `tree`; None for a group of states that are all None."""
    if isinstance(tree, str):
        return values[tree]
    if isinstance(tree, Fixed):
        return tree.value
    if leaves(tree) and all(values[name] is None for name in leaves(tree)):
        return None
    if isinstance(tree, Keyed):
        return {key: _fill(branch, values) for key, branch in tree.entries}
    if isinstance(tree, Listed):
        return [_fill(branch, values) for branch in tree.branches]
    if isinstance(tree, Named):
        raise CallError(f"the keyword `{tree.keyword}` stands inside a group; write `{{key: h}}`")
    return tuple(_fill(branch, values) for branch in tree)


def match(call: Call, returned: object) -> dict[str, Tensor]:
    """The names of the right side with what the module returned; dropped names are not there.

    A Y that is a list of one tensor a step is stacked, time first; several y or Y are joined on
    their last axis.

    Raises:
        StructureError: it has another structure.
    """
    results = call.results
    whole: Tree = results[0] if len(results) == 1 else results
    found: dict[str, Tensor] = {}
    outputs: list[Tensor] = []
    for name, value in _match(whole, returned, {*call.dropped}):
        if name in OUTPUTS:
            outputs.append(value)
        else:
            found[name] = value
    if outputs:
        found[call.output] = _join(outputs, 2 if call.output == "Y" else 1)
    return found


def _join(outputs: list[Tensor], axes: int) -> Tensor:
    """Several outputs on one last axis; `axes` are those of batch and time, before it."""
    if len(outputs) == 1:
        return outputs[0]
    return torch.cat([y.unsqueeze(-1) if y.ndim == axes else y for y in outputs], dim=-1)


def _match(tree: Tree, returned: object, dropped: set[str]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, str):
        if tree in dropped:
            return
        yield tree, _tensor(tree, returned)
        return
    if isinstance(tree, Keyed):
        for key, branch in tree.entries:
            yield from _match(branch, _look_up(key, returned), dropped)
        return
    parts = tree.branches if isinstance(tree, Listed) else tree
    if not isinstance(parts, tuple):
        raise StructureError(f"`{tree}` stands on the right, where only names and groups may")
    if not isinstance(returned, tuple | list) or len(returned) != len(parts):
        got = f"{len(returned)} values" if isinstance(returned, tuple | list) else _kind(returned)
        raise StructureError(
            f"expected {len(parts)} values for ({', '.join(leaves(tree))}), got {got}"
        )
    for branch, value in zip(parts, returned, strict=True):
        yield from _match(branch, value, dropped)


def _tensor(name: str, value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value
    steps = value if isinstance(value, tuple | list) else ()
    if name == "Y" and steps and all(isinstance(step, Tensor) for step in steps):
        return torch.stack(list(steps))  # one a step
    raise StructureError(f"`{name}` came back as {_kind(value)}, expected a tensor")


def _look_up(key: str, returned: object) -> object:
    if isinstance(returned, Mapping):
        if key in returned:
            return returned[key]
        raise StructureError(f"the result has no key `{key}`, it has {sorted(map(str, returned))}")
    if isinstance(returned, tuple | list | Tensor) and not hasattr(returned, "_fields"):
        raise StructureError(f"expected a dict or object with `{key}`, got {_kind(returned)}")
    if not hasattr(returned, key):
        raise StructureError(f"the result, {_kind(returned)}, has no `{key}`")
    return getattr(returned, key)


def _kind(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} values"
    return "one tensor" if isinstance(value, Tensor) else f"one {type(value).__name__}"
