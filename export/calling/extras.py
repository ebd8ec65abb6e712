"""What a module takes at a step besides x and states: columns of the example, lengths, an index.

A further input `NAME:WIDTH` is cut from the last columns of x, in the order of the notation. In
which shape and dtype the module wants it is found by trying.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from export.calling.call import COUNTER, LENGTHS, Call
from export.errors import CallError

DTYPES = (torch.float32, torch.bool, torch.int64)


@dataclass(frozen=True)
class Form:
    """How one further input is given: `(batch, [time,] columns)`, in which dtype."""

    dtype: torch.dtype
    is_flat: bool = False  # without the axis of columns; for one column
    is_static: bool = False  # the chunk's first step stands for all, without an axis of time

    def __str__(self) -> str:
        axes = ["batch", *([] if self.is_static else ["time"]), *([] if self.is_flat else ["n"])]
        return f"({', '.join(axes)}) {str(self.dtype).removeprefix('torch.')}"


Forms = Mapping[str, Form]


def candidate_forms(call: Call) -> Iterator[Forms]:
    """The ways to give the further inputs of `call`, likelier ones first."""
    names = [*call.widths, *([COUNTER] if COUNTER in call.made else [])]
    options = [_options(call, name) for name in names]
    for chosen in product(*options):
        yield dict(zip(names, chosen, strict=True))


def _options(call: Call, name: str) -> list[Form]:
    flat = (False, True) if call.widths.get(name) == 1 else (False,)
    dtypes: tuple[torch.dtype, ...] = DTYPES
    if name == COUNTER:
        flat, dtypes = (True, False), (torch.int64, torch.float32)
    statics = (False, True) if call.is_sequence else (True,)
    return [Form(d, f, s) for s in statics for d in dtypes for f in flat]


def cut_columns(call: Call, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """x (B, T, F) without the columns of the further inputs, and these, name -> (B, T, w).

    Raises:
        CallError: it has not so many columns.
    """
    total = sum(call.widths.values())
    if not total:
        return x, {}
    if x.ndim != 3 or not x.is_floating_point() or x.shape[-1] <= total:
        raise CallError(
            f"`{call.text}` takes {total} of the example's last columns besides x, and the example "
            f"has steps of shape {tuple(x.shape[2:])}; give an example of all columns side by side"
        )
    parts = torch.split(x, [x.shape[-1] - total, *call.widths.values()], dim=-1)
    return parts[0], dict(zip(call.widths, parts[1:], strict=True))


def extra_values(
    call: Call, forms: Forms, columns: Mapping[str, Tensor], x: Tensor, count: Tensor, axis: int
) -> dict[str, Tensor]:
    """What the module is given besides x and states.

    Args:
        columns: name -> (B, T, w).
        x: (B, T, ...).
        count: (B, 1) float32, the index of the chunk's first step.
        axis: of time outside.
    """
    batch, steps = x.shape[:2]
    values = {name: _formed(forms[name], value, axis) for name, value in columns.items()}
    if COUNTER in call.made:
        index = (count + torch.arange(steps, dtype=torch.float32)).unsqueeze(-1)  # (B, T, 1)
        values[COUNTER] = _formed(forms[COUNTER], index, axis)
    if LENGTHS in call.made:
        values[LENGTHS] = torch.full((batch,), steps, dtype=torch.int64)
    return values


def _formed(form: Form, value: Tensor, axis: int) -> Tensor:
    value = value[:, 0] if form.is_static else value.movedim(1, axis)
    value = value.squeeze(-1) if form.is_flat else value
    return value if form.dtype is torch.float32 else _cast(value, form.dtype)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value != 0 if dtype is torch.bool else value.to(dtype)
