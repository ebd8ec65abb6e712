"""One author's module, with what its author knows about it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray
Truth = Callable[[nn.Module, Tensor], Tensor]  # (module, x (B, T, ...)) -> y (B, T, ...)
Signal = Callable[[int, int], Array]  # (steps, seed) -> (T, ...)


@dataclass(frozen=True)
class Entry:
    """A module as somebody else wrote it.

    `truth` runs the module as its author would, over whole sequences, and knows nothing of
    export. Where it is NaN, nothing is compared (a window that is not full yet).
    """

    build: Callable[[], nn.Module]
    signal: Signal
    truth: Truth
    call: str | None = None  # what the user must say with --call
    window: int | None = None  # it looks ahead: served with a window of so many steps
    roads: frozenset[str] = frozenset({"lstm"})  # what its layers are expected to be lowered by
    refused: str | None = None  # it cannot be exported: what the message must say
    fails: str | None = None  # what stands in the way of the export now
    off_road: str | None = None  # why it takes another road now
    int8: bool = True  # False: with random weights its int8 variants lose the way
    gain: float = 1.5  # by which weights are grown from their initial values: livelier recurrences

    def trained(self) -> nn.Module:
        """The module with seeded weights that are nowhere zero, one or equal, in eval mode."""
        torch.manual_seed(0)
        module = self.build()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(self.gain)
                parameter.add_(0.1 * torch.randn(parameter.shape))
            for layer in module.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.running_mean = 0.3 * torch.randn(layer.num_features)
                    layer.running_var = 0.5 + torch.rand(layer.num_features)
        for parameter in module.parameters():
            parameter.requires_grad_(False)  # one by one: a ScriptModule takes no other way
        return module.eval()


def road(*names: str) -> frozenset[str]:
    return frozenset(names)


def waves(*shape: int) -> Signal:
    """Sines of several periods with noise: (T, *shape) float32."""

    def signal(steps: int, seed: int) -> Array:
        rng = np.random.default_rng(seed)
        phase = rng.uniform(0, 6, shape)
        speed = rng.uniform(0.05, 0.6, shape)
        time = np.arange(steps).reshape(-1, *[1] * len(shape))
        noise = 0.3 * rng.standard_normal((steps, *shape))
        return (np.sin(phase + speed * time) + noise).astype(np.float32)

    return signal


def spectra(bins: int) -> Signal:
    """Magnitudes: positive, (T, bins) float32."""

    def signal(steps: int, seed: int) -> Array:
        return np.exp(waves(bins)(steps, seed)).astype(np.float32)

    return signal


def tokens(count: int) -> Signal:
    """Ids from 0 to count - 1: (T,) int64."""

    def signal(steps: int, seed: int) -> Array:
        return np.random.default_rng(seed).integers(0, count, steps)

    return signal


def beside(first: Signal, second: Signal) -> Signal:
    """The features of one signal, then those of the other."""

    def signal(steps: int, seed: int) -> Array:
        return np.concatenate([first(steps, seed), second(steps, seed + 1000)], axis=1)

    return signal


def flags(rate: float) -> Signal:
    """1.0 now and then, else 0.0: (T, 1) float32."""

    def signal(steps: int, seed: int) -> Array:
        drawn = np.random.default_rng(seed).random((steps, 1))
        return (drawn < rate).astype(np.float32)

    return signal


def constants(count: int) -> Signal:
    """What does not change within a sequence: (T, count) float32."""

    def signal(steps: int, seed: int) -> Array:
        drawn = np.random.default_rng(seed).standard_normal(count)
        return np.tile(drawn, (steps, 1)).astype(np.float32)

    return signal


def whole(module: nn.Module, x: Tensor) -> Tensor:
    """`forward(X) -> Y`."""
    y: Tensor = module(x)
    return y


def first(module: nn.Module, x: Tensor) -> Tensor:
    """`forward(X) -> (Y, state)`, from the module's own start."""
    y: Tensor = module(x)[0]
    return y


def last(module: nn.Module, x: Tensor) -> Tensor:
    """`forward(X) -> y` of the last step: one call for every prefix."""
    prefixes = (x[:, : t + 1].contiguous() for t in range(x.shape[1]))
    return torch.stack([module(prefix) for prefix in prefixes], dim=1)


def windows(size: int, pick: Callable[[Tensor], Tensor] = lambda y: y) -> Truth:
    """One call for every full window; `pick` takes its y from what the module returns."""

    def truth(module: nn.Module, x: Tensor) -> Tensor:
        starts = range(x.shape[1] - size + 1)
        y = torch.stack([pick(module(x[:, t : t + size].contiguous())) for t in starts], dim=1)
        early = torch.full((y.shape[0], size - 1, *y.shape[2:]), float("nan"))
        return torch.cat([early, y], dim=1)

    return truth
