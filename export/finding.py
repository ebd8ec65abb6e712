"""Which reference a source has: the ways to take a trained model, tried in order."""

from torch import Tensor, nn

from export.errors import CallError, SourceError
from export.onnx_in.finding import find_onnx_reference
from export.onnx_in.source import OnnxModel
from export.reference import Reference
from export.streaming.torch_finding import find_torch_reference
from export.streaming.window_call import find_window_call
from export.streaming.windowed import find_windowed
from service.pipeline import Alarm

PROBE_WINDOW = 16  # steps that most models of windows take, whatever they were trained on


def find_reference(
    module: nn.Module | OnnxModel,
    x: Tensor,
    notation: str | None = None,
    window: int | None = None,
    alarm: Alarm | None = None,
) -> Reference:
    """Find out how `module` is called and where its state is.

    Args:
        module: in eval mode, or an ONNX file.
        x: (B, T, ...), the example, or a piece of it that is longer than `window`.
        notation: the `--call` that the user gave; None: the common ones are tried.
        window: the model is to see its last `window` inputs at each step; None: it carries its
            own state.
        alarm: the pipeline's; where its score is the error of a reconstruction, that is y.
    Raises:
        CallError: none works (each with its reason), or several do.
        CausalityError: it looks ahead, or over the sequence as a whole.
        SourceError: the example is shorter than the window.
    """
    score = alarm.score if alarm and alarm.score != "y" else None
    if window:
        if isinstance(module, OnnxModel):
            raise SourceError(
                f"--mode windowed takes a torch module, {module.name} is an ONNX file: say how its "
                "states go in and out (--call), or export it from its module"
            )
        return find_windowed(module, x, window, notation, score)
    if score:
        raise SourceError(
            f"the pipeline's alarm is scored by `{score}`, the error of a window's reconstruction: "
            "say --mode windowed --window N, N as many steps as in a training window. If y itself "
            'is the score, say "score": "y"'
        )
    if isinstance(module, OnnxModel):
        return find_onnx_reference(module, x, notation)
    try:
        return find_torch_reference(module, x, notation)
    except CallError as error:
        if notation or not _takes_windows(module, x):
            raise
        raise CallError(
            f"{error}\nIt gives an answer for a whole window, though: `--mode windowed --window N` "
            "serves it on its last N inputs, N as many as in a training window"
        ) from error


def _takes_windows(module: nn.Module, x: Tensor) -> bool:
    """Whether it works on a window alone, and gives no state."""
    try:
        call = find_window_call(module, x, min(PROBE_WINDOW, x.shape[1]), None, None)
    except CallError:
        return False
    return call.output is None and call.arguments == (True,)
