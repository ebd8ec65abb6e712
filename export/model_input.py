"""The example as the module takes it, which is what everything is measured on."""

import numpy as np

from export.errors import SourceError
from export.onnx_in.source import OnnxSource
from export.source import Source

Array = np.ndarray


def model_input(source: Source | OnnxSource) -> Array:
    """The example as the module takes it: (N, T, ...) float32, standardised (unitless).

    Integers without a scaling are token ids: (T,) or (N, T) int64.

    Raises:
        SourceError: the example has not the pipeline's features, or overflows float32.
    """
    raw = source.example
    if raw.dtype.kind in "iu" and source.pipeline.x is None:  # token ids
        return np.atleast_2d(raw).astype(np.int64)
    if raw.ndim == 1:
        raw = raw[:, None]
    if raw.ndim == 2:
        raw = raw[None]
    scaling = source.pipeline.x
    if scaling and raw.shape[-1] != len(scaling.mean):
        raise SourceError(
            f"the example has {raw.shape[-1]} features, the pipeline's `x` has {len(scaling.mean)}"
        )
    x = source.pipeline.encode(raw).astype(np.float32)
    if not np.isfinite(x).all():
        raise SourceError("the example overflows float32 once scaled; mend it or the pipeline")
    return x
