"""Stock dynamic int8 of torch: everything that depends on torch.ao.quantization.

It is on its way out: a torch without it costs the variant `torchscript-int8`.
"""

import torch
from torch import nn

from export.errors import LoweringError, NothingQuantizedError
from export.graphs.torch_part import torch_part

QUANTIZED = (nn.LSTM, nn.GRU, nn.Linear)


def quantize(module: nn.Module) -> nn.Module:
    """A copy in which every layer is quantized by torch's own `quantize_dynamic`.

    Raises:
        NothingQuantizedError: there is no layer to quantize.
        UnavailableError: this torch has no `quantize_dynamic`.
    """
    with torch_part("torch.ao.quantization"):
        quantized: nn.Module = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            module.eval(), set(QUANTIZED), dtype=torch.qint8
        )
    left = [name for name, m in quantized.named_modules() if type(m) in QUANTIZED]
    if left:
        raise LoweringError(f"torch's quantize_dynamic left {left} in float")
    if not any(type(m) in QUANTIZED for m in module.modules()):
        raise NothingQuantizedError("there is no product of matrices")
    return quantized
