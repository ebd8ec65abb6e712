"""PackedSequence in a trace: packing of full sequences is a view of them.

`pack_padded_sequence` and its inverse read the lengths, which a trace has not. In a stream every
row of a chunk is full, and then packing only puts the time axis first and folds it with the batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import _VF, Tensor
from torch.utils._python_dispatch import _disable_current_modes

from export.errors import CallError


class FullSizes(Tensor):
    """The batch sizes of full sequences: each is a number, where nn.LSTM asks for the first."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __getitem__(self, step: object) -> int:  # type: ignore[override]
        with _disable_current_modes():
            return int(self.max())


@contextmanager
def packing_as_views() -> Iterator[None]:
    """While it is open, torch packs by views; sequences that are not full are refused."""
    names = {"_pack_padded_sequence": _pack, "_pad_packed_sequence": _pad}
    for name, function in names.items():
        setattr(_VF, name, function)
    try:
        yield
    finally:
        for name in names:
            delattr(_VF, name)


def _pack(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """(B, T, ...) or (T, B, ...) -> (T * B, ...), and how many rows each step has."""
    first = x.transpose(0, 1) if batch_first else x
    steps, batch = first.shape[:2]
    with _disable_current_modes():
        full = bool((lengths == steps).all())
        sizes = torch.full((steps,), batch, dtype=torch.int64).as_subclass(FullSizes)
    if not full:
        raise CallError("it packs sequences that are shorter than X; export takes full ones")
    return first.reshape(steps * batch, *first.shape[2:]), sizes


def _pad(
    data: Tensor, sizes: Tensor, batch_first: bool, padding: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """The inverse, and the lengths."""
    steps = sizes.shape[0]
    first = data.reshape(steps, data.shape[0] // steps, *data.shape[1:])
    lengths = torch.full((first.shape[1],), steps, dtype=torch.int64)
    return (first.transpose(0, 1) if batch_first else first), lengths
