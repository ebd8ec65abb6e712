"""State lifting: the states of layers that start from zero at each call, made inputs and outputs.

Most trained networks hide their state, `forward(x) -> y`. Their `nn.LSTM`, `nn.GRU`, `nn.RNN` and
cell layers are found by running the module once; while it runs again, each layer's first call gets
the state that is given instead of zeros, and its last call's state is given back. The user's code
and module stay as they are. A layer that starts from another layer's state (a decoder) is left to.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from export.errors import CallError

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
Hidden = tuple[Tensor, ...]  # (h, c) or (h,)


class Lifted(nn.Module):
    """`forward(x, *states or None) -> (y, *states')` of a module that hides its states."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        """Find the layers that start from zero.

        Args:
            module: in eval mode. Not changed.
            x: an input that it takes as its only argument.
        Raises:
            CallError: it has none, or one starts from zero twice in a call.
        """
        super().__init__()
        self.module = module
        self._layers: dict[str, int] = {}  # path -> the number of its states
        starts = self._run_once(x)
        for path, from_zero in starts.items():
            if sum(from_zero) > 1:
                raise CallError(
                    f"`{path}` starts from zero {sum(from_zero)} times in one call, so it has no "
                    "one state to carry"
                )
            if from_zero[0]:
                self._layers[path] = 2 if _is_lstm(module.get_submodule(path)) else 1
        if not self._layers:
            raise CallError("it has no recurrent torch layer that starts from zero")

    @property
    def state_names(self) -> tuple[str, ...]:
        """h and c of the one layer, or each with its layer's name."""
        alone = len(self._layers) == 1
        return tuple(
            letter if alone else f"{path.replace('.', '_') or 'module'}_{letter}"
            for path, count in self._layers.items()
            for letter in "hc"[:count]
        )

    def _run_once(self, x: Tensor) -> dict[str, list[bool]]:
        """path -> for each of its calls, whether it started from zero."""
        starts: dict[str, list[bool]] = {}

        def watch(path: str) -> RemovableHandle:
            def before(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
                hidden = args[1] if len(args) > 1 else kwargs.get("hx")
                starts.setdefault(path, []).append(_is_zero(hidden))

            layer = self.module.get_submodule(path)
            return layer.register_forward_pre_hook(before, with_kwargs=True)

        with ExitStack() as hooks, torch.no_grad():
            for path, layer in self.module.named_modules():
                if isinstance(layer, RECURRENT):
                    hooks.callback(watch(path).remove)
            self.module(x)
        return starts

    def forward(self, x: Tensor, *states: Tensor | None) -> tuple[Tensor, ...]:
        given = iter(states)
        finals: dict[str, Hidden] = {}
        with ExitStack() as hooks:
            for path, count in self._layers.items():
                hidden = [next(given) for _ in range(count)]
                for handle in self._carry(path, hidden, finals):
                    hooks.callback(handle.remove)
            y = self.module(x)
        if not isinstance(y, Tensor):
            raise CallError(f"the module returned {type(y).__name__}, expected a tensor")
        return y, *(value for path in self._layers for value in finals[path])

    def _carry(
        self, path: str, hidden: Sequence[Tensor | None], finals: dict[str, Hidden]
    ) -> tuple[RemovableHandle, RemovableHandle]:
        layer = self.module.get_submodule(path)
        start = [h for h in hidden if h is not None]

        def before(
            _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
        ) -> tuple[tuple[object, ...], dict[str, object]]:
            if path in finals or not start:
                return args, kwargs
            return (args[0] if args else kwargs["input"], _joined(layer, start)), {}

        def after(_: nn.Module, __: tuple[object, ...], result: object) -> None:
            last = result[1] if isinstance(layer, nn.RNNBase) else result  # type: ignore[index]
            finals[path] = last if isinstance(last, tuple) else (last,)

        return (
            layer.register_forward_pre_hook(before, with_kwargs=True),
            layer.register_forward_hook(after),
        )


def _is_lstm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.LSTM | nn.LSTMCell)


def _joined(layer: nn.Module, start: Sequence[Tensor]) -> object:
    return tuple(start) if _is_lstm(layer) else start[0]


def _is_zero(hidden: object) -> bool:
    """None, or tensors that are zero throughout."""
    parts = hidden if isinstance(hidden, tuple | list) else [hidden]
    return all(part is None or (isinstance(part, Tensor) and not part.any()) for part in parts)
