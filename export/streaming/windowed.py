"""A model that needs its whole window, as a reference: the session's state is the last N inputs.

A bidirectional layer, a transformer, a decoder that attends to all steps: none can be advanced by
one step from what it left. So each step shifts the window by one input and runs the user's module
on all of it. Until N steps have come, what is missing counts as zeros: the mean, where x is
standardised; the id 0, where x is token ids.

An autoencoder's y is how badly the window was reconstructed, in the model's units: one score a
step, which streams as every other y.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from export.errors import CallError, SourceError
from export.reference import Reference, State, StateSpec
from export.streaming.window_call import WindowCall, find_window_call

ScoreKind = Literal["mse", "mae", "max"]
SCORES: dict[ScoreKind, str] = {
    "mse": "the mean squared error of the window's reconstruction Y",
    "mae": "the mean absolute error of the window's reconstruction Y",
    "max": "the greatest absolute error of the window's reconstruction Y",
}


class Windowed(Reference):
    """A module that is run on the last `window` inputs at each step."""

    def __init__(
        self, module: nn.Module, call: WindowCall, window: int, x: Tensor, score: ScoreKind | None
    ) -> None:
        """Args:
        x: (B, T, ...), a piece of the example; its features and dtype count.
        score: y is this error of the window's reconstruction; None: y is the module's own.
        """
        self.module = module
        self.call = call
        self.score = score
        self._window = window
        self._features = tuple(x.shape[2:])
        self._dtype = x.dtype

    @property
    def name(self) -> str:
        return type(self.module).__name__

    @property
    def mode(self) -> Literal["windowed"]:
        return "windowed"

    @property
    def window(self) -> int:
        return self._window

    @property
    def states(self) -> tuple[StateSpec, ...]:
        return (StateSpec("window", (self._window, *self._features)),)

    @property
    def axis_sizes(self) -> set[int]:
        tensors = {n for value in self.module.state_dict().values() for n in value.shape}
        return tensors | {self._window, *self._features}

    def describe(self) -> str:
        y = "; y is the last step of Y" if self.call.gives_steps else ""
        if self.score:
            y = f"; y is {SCORES[self.score]}"
        return f"{self.call.describe()}; on windows of {self._window} steps{y}"

    def initial(self, batch: int) -> State:
        return {"window": torch.zeros(batch, self._window, *self._features, dtype=self._dtype)}

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        window = state["window"]
        ys = []
        for t in range(x.shape[1]):
            window = torch.cat((window[:, 1:], x[:, t : t + 1]), dim=1)
            ys.append(self.answer(window))
        return torch.stack(ys, dim=1), {"window": window}

    def answer(self, window: Tensor) -> Tensor:
        """y (B, ...) of windows (B, N, ...)."""
        y = self.call.run(self.module, window)
        if self.score:
            return _error(self.score, (y - window).flatten(1))
        return y[:, -1] if self.call.gives_steps else y

    def whole_steps(self, steps: int) -> None:
        return None

    def whole(self, x: Tensor, steps: Sequence[int]) -> Tensor:
        """y of each step's window as it is cut from the sequence, with zeros before it.

        One window of each row at a time, as `run` has them: in a larger batch the module itself
        rounds otherwise, by 3e-5 for a classifier that is as steep as `bidirectional` of the zoo.
        """
        before = x.new_zeros(x.shape[0], self._window - 1, *x.shape[2:])
        padded = torch.cat((before, x), dim=1)
        return torch.stack([self.answer(padded[:, t : t + self._window]) for t in steps], dim=1)

    def what_looks_ahead(self) -> str:
        return (
            "The same window gave two answers: the module keeps state on itself, or draws at "
            "random though it is in eval mode; mend its forward"
        )


def find_windowed(
    module: nn.Module,
    x: Tensor,
    window: int,
    notation: str | None = None,
    score: ScoreKind | None = None,
) -> Windowed:
    """Take `module` as a model of windows.

    Args:
        module: in eval mode.
        x: (B, T, ...), the example.
        window: N, the steps of a window.
        notation: the `--call` that the user gave; None: found out.
        score: what y is to be made of, where the module reconstructs its window.
    Raises:
        SourceError: the example is shorter than the window, or its score cannot be had.
        CallError: no way to call the module was found, or its output is unclear.
    """
    if x.shape[1] < window:
        raise SourceError(
            f"the example has {x.shape[1]} steps, a window of {window} needs at least as many; "
            "give more real input, or the window that the model was trained on (--window)"
        )
    call = find_window_call(module, x, window, notation, True if score else None)
    found = Windowed(module, call, window, x, score)
    if score:
        _check_reconstruction(found, x)
    return found


def _check_reconstruction(found: Windowed, x: Tensor) -> None:
    with torch.no_grad():
        shape = tuple(found.call.run(found.module, x[:1, : found.window]).shape)
    wanted = (1, found.window, *x.shape[2:])
    if shape != wanted or not x.is_floating_point():
        raise CallError(
            f"the pipeline's alarm is scored by `{found.score}`, the error of a reconstruction of "
            f"real-valued X; {found.name} gives {shape} for one window of {x.dtype} {wanted}. "
            'If y itself is the score, say "score": "y"'
        )


def _error(score: ScoreKind, difference: Tensor) -> Tensor:
    """(B, F) -> (B, 1)."""
    if score == "mse":
        return (difference * difference).mean(1, keepdim=True)
    if score == "mae":
        return difference.abs().mean(1, keepdim=True)
    return difference.abs().amax(1, keepdim=True)
