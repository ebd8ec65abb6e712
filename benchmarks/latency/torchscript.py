"""TorchScript as a user gets it: traced and frozen. All of the benchmark that needs torch.jit.

It is on its way out (deprecated in torch 2.13): without it this one contestant is absent.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def traced(module: nn.Module, x: Tensor, state: Tensor | tuple[Tensor, ...]) -> Callable[..., Any]:
    """`module` called as `module(x, state)`, compiled; a loop over time of its own is unrolled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deprecation; that a traced batch may be fixed
        traced = torch.jit.trace(module, (x, state))  # type: ignore[no-untyped-call]
        frozen: Callable[..., Any] = torch.jit.freeze(traced)
    return frozen
