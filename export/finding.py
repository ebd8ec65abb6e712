"""Which reference a source has: the ways to take a trained model, tried in order."""

from torch import Tensor, nn

from export.called import find_call
from export.onnx_finding import find_onnx_reference
from export.onnx_source import OnnxModel
from export.reference import Reference


def find_reference(
    module: nn.Module | OnnxModel, x: Tensor, notation: str | None = None
) -> Reference:
    """Find out how `module` is called and where its state is.

    Args:
        module: in eval mode, or an ONNX file.
        x: (B, T, ...), a piece of the example; its features and dtype count.
        notation: the `--call` that the user gave; None: the common ones are tried.
    Raises:
        CallError: none works (each with its reason), or several do.
    """
    if isinstance(module, OnnxModel):
        return find_onnx_reference(module, x, notation)
    return find_call(module, x, notation)
