"""How a torch module is called and where its states are: the ways to take it, tried in order.

States that it takes and returns come first, then those of its torch layers, then those of loops
written by hand and of poolings over time.
"""

from torch import Tensor, nn

from export.calling.called import find_call
from export.calling.conventions import HIDDEN_STATE
from export.calling.lift import Lifted
from export.errors import CallError, CausalityError, ExportError
from export.reference import Reference
from export.streaming.hidden_loop import check_chunks, find_cut


def find_torch_reference(module: nn.Module, x: Tensor, notation: str | None = None) -> Reference:
    """Find out how `module` is called and where its states are.

    Args:
        module: in eval mode. Not changed.
        x: (B, T, ...), a piece of the example.
        notation: the `--call` that the user gave; None: the common ones are tried.
    Raises:
        CallError: none works (each with its reason), or several do.
        CausalityError: it looks ahead, or over the sequence as a whole.
    """
    try:
        found = find_call(module, x, notation)
    except CallError as error:
        if not _may_hide(module, x, notation):
            raise
        return _cut_instead(module, x, notation, str(error))
    is_lifted = isinstance(found.module, Lifted)
    if not is_lifted or any(getattr(m, "bidirectional", False) for m in module.modules()):
        return found  # what looks ahead is named when it is measured
    try:
        check_chunks(found, x)
    except CausalityError as error:
        return _cut_instead(module, x, notation, str(error))
    except Exception:  # whatever the user's code raises: it was not called so
        try:
            return _cut_instead(module, x, notation, "")
        except CallError:
            return found
    return found


def _may_hide(module: nn.Module, x: Tensor, notation: str | None) -> bool:
    """Whether the module takes X alone, so that its states can only be inside."""
    if notation is not None:
        return notation in HIDDEN_STATE
    try:
        return isinstance(module(x[:2, :8]), Tensor)
    except Exception:  # whatever the user's code raises: it is not called so
        return False


def _cut_instead(module: nn.Module, x: Tensor, notation: str | None, reason: str) -> Reference:
    try:
        return find_cut(module, x, notation)
    except ExportError as error:
        if isinstance(error, CausalityError):
            raise CausalityError(
                f"{type(module).__name__} cannot run step by step: {error}"
            ) from error
        raise CallError(f"{reason}\nCut between its steps: {error}") from error
