"""The truth of y, where the user has it: `--target FILE.npy`."""

from pathlib import Path

import numpy as np

from export.errors import SourceError
from service.pipeline import Meaning

Array = np.ndarray
WANTED = {
    "numbers": "the true y, in raw units (NaN where it is not known)",
    "tokens": "the id of the true token",
    "classes": "the id of the true class",
    "score": "1 at a step that is an anomaly and 0 at others",
}


def read_target(path: Path) -> Array:
    """The array of a .npy file.

    Raises:
        SourceError: it is not there, or holds no numbers.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(
            f"--target {path} is not a .npy file of numbers ({error}); write it with numpy.save"
        ) from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiub":
        kind = getattr(found, "dtype", type(found).__name__)
        raise SourceError(f"--target {path} holds {kind}, expected numbers; save floats or ints")
    return found


def checked_target(
    target: Array, example_shape: tuple[int, ...], tail: tuple[int, ...], means: Meaning, size: int
) -> Array:
    """The target as (N, T, ...): float64 numbers, or int64 ids and labels.

    Args:
        example_shape: (N, T, ...) of the example, whose steps it is the truth of.
        tail: of y (B, T, *tail).
        size: how many ids there are, of tokens and classes.
    Raises:
        SourceError: it is not what y could be held against; the message says what was expected.
    """
    rows, steps = example_shape[:2]
    wanted = (rows, steps, *(tail if means == "numbers" else ()))
    choices = {wanted, wanted[1:]} if rows == 1 else {wanted}
    if wanted[2:] == (1,):
        choices |= {shape[:-1] for shape in choices}
    if means == "score":
        choices |= {(*shape, 1) for shape in choices}
    if target.shape not in choices:
        said = " or ".join(str(shape) for shape in sorted(choices, key=len))
        raise SourceError(
            f"the target has shape {target.shape}, expected {said}: at each step of the example "
            f"{WANTED[means]}"
        )
    target = target.reshape(wanted)
    if means == "numbers":
        if np.isinf(target).any() or not np.isfinite(target).any():
            raise SourceError(
                "the target holds infinity, or nothing but NaN; expected " + WANTED[means]
            )
        return target.astype(np.float64)
    count = 2 if means == "score" else size
    low, high = target.min(), target.max()
    if not np.isfinite([low, high]).all() or (target != np.rint(target)).any():
        raise SourceError(f"the target holds fractions or NaN, expected {WANTED[means]}")
    if low < 0 or high >= count:
        raise SourceError(
            f"the target holds {low:g} to {high:g}, expected 0 to {count - 1}: {WANTED[means]}"
        )
    if means == "score" and low == high:
        raise SourceError(
            f"the target is {low:g} at every step: an AUC needs both kinds; expected "
            f"{WANTED[means]}"
        )
    return target.astype(np.int64)
