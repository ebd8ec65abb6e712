"""The methods by which a module makes or resets its state: `init_hidden(batch)`, `reset()`, ..."""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from export.errors import CallError

_STATE = r"(hidden|state|memory|carry|cell|h0|hc|recurrent)\w*"
_NAMES = re.compile(
    rf"_?((get|make|create|new|empty|default)_)?(init|initial|initialize|initialise|zero|zeros)\w*_{_STATE}"
    rf"|_?(get|make|create|new|empty|default)_{_STATE}"
    rf"|_?(reset|clear|detach_and_reset|begin|start)(_(the_)?({_STATE}|sequence|session|all))?"
)
_BATCH = re.compile(r"n?_?(batch|batch_?size|bsz|bs|b|n|batch_dim|num_?batch\w*|n_?batch\w*)", re.I)
_INPUT = re.compile(r"(x|xs|inp|inputs?|sequences?|seq|data|src|tensor|ref\w*|like)", re.I)


@dataclass(frozen=True)
class Beginning:
    """One such method, with its arguments filled in by their names."""

    name: str
    run: Callable[[int, Tensor], object]  # the batch, and x as the module takes it


def find_beginnings(module: nn.Module) -> Iterator[Beginning]:
    """The methods of `module` that begin a state, then each that only a part of it has."""
    for name in _methods(module):
        yield Beginning(name, _caller(module, name))
    parts = [part for part in module.modules() if part is not module]
    for name in sorted({name for part in parts for name in _methods(part)}):
        callers = [_caller(part, name) for part in parts if name in _methods(part)]

        def run(batch: int, x: Tensor, callers: list[Callable[..., object]] = callers) -> object:
            for caller in callers:
                caller(batch, x)
            return None

        yield Beginning(name, run)


def tensors_of(value: object) -> list[Tensor]:
    """The tensors of a tree, left to right."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _methods(module: nn.Module) -> list[str]:
    """The names of such methods that the user's own classes define: torch's own clear weights."""
    users = [cls for cls in type(module).__mro__ if not cls.__module__.startswith("torch.")]
    names = dict.fromkeys(n for cls in users for n in vars(cls) if _NAMES.fullmatch(n))
    return [n for n in names if callable(getattr(module, n, None))]


def _caller(module: nn.Module, name: str) -> Callable[[int, Tensor], object]:
    method = getattr(module, name)

    def run(batch: int, x: Tensor) -> object:
        keywords: dict[str, object] = {}
        for parameter in inspect.signature(method).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            value = _argument(module, parameter.name, batch, x)
            if value is not None:
                keywords[parameter.name] = value
        with torch.no_grad(), _weights_kept(module):
            return method(**keywords)

    return run


@contextmanager
def _weights_kept(module: nn.Module) -> Iterator[None]:
    """Undo a method that resets the weights too: it is not one that begins a state."""
    before = [(value, value.detach().clone()) for value in module.parameters()]
    yield
    changed = [pair for pair in before if not torch.equal(*pair)]
    for value, copy in changed:
        value.detach().copy_(copy)
    if changed:
        raise CallError("a method that should begin a state changes the weights")


def _argument(module: nn.Module, name: str, batch: int, x: Tensor) -> object:
    """What stands for a parameter of that name; None: leave its default, or let it fail."""
    if _BATCH.fullmatch(name):
        return batch
    if _INPUT.fullmatch(name):
        return x
    known = {"device": torch.device("cpu"), "dtype": torch.float32}
    return known.get(name, getattr(module, name, None))
