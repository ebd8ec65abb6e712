"""The shapes that states may have, as the module takes them: what is known first, then guesses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product

import torch
from torch import Tensor, nn

from export.calling.begin import find_beginnings, tensors_of
from export.calling.call import Call
from export.calling.tree import Tree, branches, leaves
from export.errors import CallError
from export.reference import StateSpec

MAX_LAYERS = 4  # of a packed or layered state whose module does not say how many it has
LIKELY = 10  # shapes that are tried for each of three or more states of different shapes
MAX_GROUPS = 5  # of states that differ from each other
MAX_UNLIKE = 1500  # guesses of states of different sizes, each one failing call, 50 us or more


@dataclass(frozen=True)
class Outside:
    """A state as the module takes it: where its batch axis lies, and its dtype.

    None: the module takes one row alone, without a batch. Inside, every state is float32:
    counts are exact in it up to 2 ** 24.
    """

    spec: StateSpec
    batch_axis: int | None
    dtype: torch.dtype = torch.float32

    def give(self, value: Tensor) -> Tensor:
        """(B, ...) as the module takes it."""
        cast = value if self.dtype is torch.float32 else value.to(self.dtype)
        return cast.squeeze(0) if self.batch_axis is None else cast.movedim(0, self.batch_axis)

    def take(self, value: Tensor) -> Tensor:
        """The reverse."""
        cast = value if value.dtype is torch.float32 else value.to(torch.float32)
        return cast.unsqueeze(0) if self.batch_axis is None else cast.movedim(self.batch_axis, 0)


def compare(name: str, tensors: Sequence[Tensor], batches: Sequence[int]) -> Outside:
    """Where the batch axis is, from what came back for batches of so many rows.

    Raises:
        CallError: no one axis grows with the batch.
    """
    dtype = tensors[0].dtype
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(batches) == 1:
        return Outside(StateSpec(name, shapes[0]), None, dtype)
    small, large = shapes
    if len(small) == len(large):
        grown = [i for i, (a, b) in enumerate(zip(small, large, strict=True)) if a != b]
        if len(grown) == 1 and (small[grown[0]], large[grown[0]]) == tuple(batches):
            axis = grown[0]
            return Outside(StateSpec(name, small[:axis] + small[axis + 1 :]), axis, dtype)
    if small == large:
        raise CallError(
            f"state `{name}` has shape {small} for a batch of {batches[0]} as for {batches[1]}: it "
            "is one value for all rows, and each needs its own; give it an axis of the batch"
        )
    raise CallError(
        f"state `{name}` has shape {small} for a batch of {batches[0]} and {large} "
        f"for {batches[1]}; no one axis is the batch"
    )


def begun_shapes(
    module: nn.Module, call: Call, inputs: dict[int, Tensor]
) -> Iterator[tuple[Outside, ...]]:
    """Shapes of states that a method of the module, as `init_hidden`, makes."""
    for begin in find_beginnings(module):
        try:
            made = [tensors_of(begin.run(batch, x)) for batch, x in inputs.items()]
        except Exception:  # not a method for this, or not with these arguments
            continue
        if all(len(tensors) == len(call.states) for tensors in made):
            try:
                named = zip(call.states, zip(*made, strict=True), strict=True)
                yield tuple(compare(name, pair, [*inputs]) for name, pair in named)
            except CallError:
                continue


def guessed_shapes(
    module: nn.Module, call: Call, x: Tensor, rows: bool
) -> Iterator[list[tuple[Outside, ...]]]:
    """Guesses, likelier ones first: groups that differ in sizes only, all states alike; then each
    state of its own size.
    """
    sizes = _hidden_sizes(module, x)
    for shapes in _templates(sizes, _layers(module), tuple(x.shape[3:])):
        yield [
            tuple(Outside(StateSpec(name, shape), None if rows else axis) for name in call.states)
            for shape, axis in shapes
        ]
    yield list(islice(_unlike(call, _by_frequency(module, sizes), rows), MAX_UNLIKE))


def _unlike(call: Call, sizes: list[int], rows: bool) -> Iterator[tuple[Outside, ...]]:
    """Guesses of states that differ in shape; those of one tuple or list are alike."""
    groups = _groups(call.arguments, {*call.states})
    if len(groups) == 1:  # h and c of two sizes, as with a projection
        groups = [[name] for name in call.states]
    single: list[tuple[int, ...]] = [(size,) for size in sizes]
    square = [(size, size) for size in sizes[:4]]
    # From the likelier ones: sizes, a number, one for all, the matrix of a memory.
    shapes = [*single[:4], (1,), (), *square, *single[4:]] if len(groups) > 2 else single
    ranks = range(min(len(shapes), LIKELY if len(groups) > 2 else len(shapes)))
    for chosen in sorted(product(ranks, repeat=min(len(groups), MAX_GROUPS)), key=sum):
        if len(set(chosen)) > 1 and len(chosen) == len(groups):
            pairs = zip(groups, chosen, strict=True)
            named = {name: shapes[rank] for names, rank in pairs for name in names}
            yield tuple(Outside(StateSpec(n, named[n]), None if rows else 0) for n in call.states)


def _groups(tree: Tree, states: set[str]) -> list[list[str]]:
    """The states that stand side by side in a group, or alone among the arguments."""
    found: list[list[str]] = []
    for branch in branches(tree):
        inner = branches(branch)
        if inner and all(isinstance(leaf, str) for leaf in inner):
            found.append([name for name in leaves(branch) if name in states])
        elif isinstance(branch, str):
            found.append([branch] if branch in states else [])
        else:
            found += _groups(branch, states)
    return [names for names in found if names]


def _templates(
    sizes: list[int], layers: list[int], spatial: tuple[int, ...]
) -> Iterator[list[tuple[tuple[int, ...], int]]]:
    """Of each kind, for each size: the shape without the batch, and where the batch stands."""
    if spatial:  # of a convolutional cell, channels first
        yield [((size, *spatial), 0) for size in sizes]
    yield [((size,), 0) for size in sizes]
    yield [((1, size), 1) for size in sizes]
    yield [((k, size), 1) for k in layers for size in sizes]
    yield [((k, size), 0) for k in (1, *layers) for size in sizes]
    yield [((size, k), 0) for k in (1, *layers) for size in sizes]
    yield [((size,), 1) for size in sizes]
    yield [((k, size), 2) for k in (1, *layers) for size in sizes]
    yield [((1, 1, size), 2) for size in sizes]
    for k in (1, *layers):  # h and c of each layer in one tensor
        yield [(shape, 0) for n in sizes for shape in ((k, n, 2), (k, 2, n), (2, k, n))]
        yield [(shape, 2) for n in sizes for shape in ((2, k, n), (k, 2, n))]


def _layers(module: nn.Module) -> list[int]:
    named = [getattr(m, "num_layers", 0) for m in module.modules()]
    told = {n * k for n in named if isinstance(n, int) for k in (1, 2)}
    return sorted(({*range(2, MAX_LAYERS + 1)} | told) - {0, 1})


def _hidden_sizes(module: nn.Module, x: Tensor) -> list[int]:
    """Sizes that a state may have: an axis of a weight, a gate's share of it, it without x, and
    several of them in one tensor.
    """
    axes = {n for value in module.state_dict().values() for n in value.shape}
    axes |= {n for part in module.modules() for n in _plain_axes(part)}
    shares = {n // k for n in axes for k in (4, 3, 2) if n % k == 0}
    width = x.shape[-1] if x.ndim > 2 else 0
    beside_x = {n - width for n in axes if n > width}
    packed = {n * k for n in axes | shares for k in (2, 3, 4)}
    first, second = sorted(axes), sorted((shares | beside_x) - axes)
    return [*first, *second, *sorted(packed - axes - shares - beside_x)]


def _by_frequency(module: nn.Module, sizes: list[int]) -> list[int]:
    """The sizes, those of more axes of weights first: most are as long as the hidden state."""
    axes = [n for value in module.state_dict().values() for n in value.shape]
    return sorted(sizes, key=lambda size: -axes.count(size))


def _plain_axes(part: nn.Module) -> set[int]:
    """The axes of tensors that are plain attributes, and plain sizes as `hidden_size`."""
    found = {n for v in vars(part).values() if isinstance(v, Tensor) for n in v.shape}
    numbers = (v for k, v in vars(part).items() if "hidden" in k or "size" in k or "dim" in k)
    return found | {n for n in numbers if type(n) is int and 0 < n < 1 << 16}
