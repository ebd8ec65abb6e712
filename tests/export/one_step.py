"""The step graph of an export, fed as a chunk of one step is."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

Array = np.ndarray


def run_one_step(
    session: ort.InferenceSession, outputs: Sequence[str], feed: Mapping[str, Array]
) -> list[Array]:
    """y (B, 1, ...) and the new states, shaped as they were fed.

    A step graph may declare other shapes of the same elements, batch first: see `bound_graph`.
    """
    declared = {port.name: port.shape[1:] for port in session.get_inputs()}
    fed = {
        name: value.reshape(len(value), *map(int, declared[name])) for name, value in feed.items()
    }
    y, *after = session.run(list(outputs), fed)
    shapes = [value.shape for name, value in feed.items() if name != "x"]
    y = y.reshape(len(y), 1, *y.shape[1:]) if y.ndim == feed["x"].ndim - 1 else y
    return [y, *(value.reshape(shape) for value, shape in zip(after, shapes, strict=True))]
