"""The floor: what a step cannot do without, by the fastest library at hand, and nothing else.

For a batch it is the matrix product alone: x and h side by side times their weights for one step;
for a chunk x of all steps times its weights, and h of one step after the other times its own. For
one row it is reading the weights once. Several libraries do the same here, into arrays that are
there already; whoever measures takes the fastest of them, in turns with what is compared with it.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch

Array = np.ndarray
Call = Callable[[], object]
GATES = 4  # of an LSTM


def floor_calls(
    batch: int, input_size: int, hidden: int, steps: int = 1, gates: int = GATES
) -> Mapping[str, Call]:
    """How the floor of one call can be computed: name -> one call, on random float32 values.

    Args:
        steps: of a chunk; the product with h is done once for each.
        gates: 4 for an LSTM, 3 for a GRU.
    """
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    if steps == 1:
        parts = [(draw(batch, input_size + hidden), draw(input_size + hidden, gates * hidden))]
    else:
        parts = [(draw(steps * batch, input_size), draw(input_size, gates * hidden))]
        parts += [(draw(batch, hidden), draw(hidden, gates * hidden))] * steps
    calls = {"numpy": _numpy_products(parts), "torch": _torch_products(parts)}
    if batch == steps == 1:
        weights = parts[0][1].ravel()
        calls |= {"dot": lambda: np.dot(weights, weights), "max": weights.max}
    return calls


def _numpy_products(parts: list[tuple[Array, Array]]) -> Call:
    work = [(a, b, np.empty((len(a), b.shape[1]), np.float32)) for a, b in parts]

    def call() -> None:
        for a, b, out in work:
            np.matmul(a, b, out=out)

    return call


def _torch_products(parts: list[tuple[Array, Array]]) -> Call:
    work = [
        (torch.from_numpy(a), torch.from_numpy(b), torch.empty(len(a), b.shape[1]))
        for a, b in parts
    ]

    def call() -> None:
        for a, b, out in work:
            torch.mm(a, b, out=out)

    return call
