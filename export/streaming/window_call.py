"""How a module is called on a window, found out by calling it.

Its batch axis is the one along which rows do not feel each other: shapes alone do not tell
(batch, time, ...) from (time, batch, ...). Whether it gives one output a step (`Y`) or one for the
window (`y`) is seen from the output's axes; where they agree by chance, a shorter window tells.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from export.calling.call import OUTPUTS, parse_call
from export.calling.refusal import Refusal, describe_features, signature_of
from export.errors import CallError

PLAIN_CALLS = ("X -> Y", "X -> y")
AXES = ("X is (time, batch, ...)", "X is (batch, time, ...)")
ROW_TOLERANCE = 1e-4  # of the output's size: far above rounding, far below what a neighbour does


@dataclass(frozen=True)
class WindowCall:
    """How the module is called: `text` as in `--call`."""

    text: str
    arguments: tuple[bool, ...]  # the window, or None for a state that the module starts itself
    output: int | None  # its place among the values returned; None: it comes alone
    time_axis: int  # of X and Y outside: 0 or 1
    gives_steps: bool = False  # Y, one output a step; else y, one for the window
    needs_company: bool = False  # at batch 1 it squeezes the batch axis away, or breaks

    def describe(self) -> str:
        return f"{self.text}; {AXES[self.time_axis]}"

    def run(self, module: nn.Module, window: Tensor) -> Tensor:
        """The module's output, batch first.

        Args:
            window: (B, N, ...).
        Returns:
            Y (B, N, ...) if `gives_steps`, else y (B, ...).
        """
        if self.needs_company:
            window = torch.cat((window, window[:1]))
        outside = window.movedim(1, self.time_axis)
        returned = module(*(outside if is_x else None for is_x in self.arguments))
        y = returned if self.output is None else returned[self.output]
        if not isinstance(y, Tensor) or not y.is_floating_point():
            what = y.dtype if isinstance(y, Tensor) else type(y).__name__
            raise CallError(f"the output came back as {what}, expected a tensor of real numbers")
        if self.gives_steps:
            y = y.movedim(self.time_axis, 1)
        return y[:-1] if self.needs_company else y


def find_window_call(
    module: nn.Module, x: Tensor, window: int, notation: str | None, gives_steps: bool | None
) -> WindowCall:
    """Find out how `module` is called on windows.

    Args:
        module: in eval mode.
        x: (B, T, ...), the example.
        window: N, the steps of a window.
        notation: the `--call` that the user gave; None: X alone and X with None are tried.
        gives_steps: that its output is Y, or y; None: found out, if the notation does not say.
    Raises:
        CallError: it cannot be called so (each way with its reason), or its output is unclear.
    """
    refusal = Refusal(module, x)
    for call in _candidates(notation):
        try:
            with torch.no_grad():
                return _settle(module, call, x, window, gives_steps)
        except _AmbiguousError:
            raise
        except Exception as error:  # whatever the user's code raises is the reason
            refusal.add(f"{call.text}; {AXES[call.time_axis]}", error)
    raise CallError(
        f"no way was found to call {signature_of(module)} on windows of {window} steps with x of "
        f"{describe_features(x)}; tried:\n"
        + "\n".join(refusal.reasons())
        + '\nSay how it is called, for example --call "X -> y" or --call "X, h=None -> Y, h"'
    )


class _AmbiguousError(CallError):
    """The output may be read in two ways."""


def _candidates(notation: str | None) -> Iterator[WindowCall]:
    for time_axis in (1, 0):
        if notation is None or notation in PLAIN_CALLS:
            yield WindowCall(notation or "X ->", (True,), None, time_axis)
        if notation is None:
            yield WindowCall("X, state=None ->", (True, False), None, time_axis)
        elif notation not in PLAIN_CALLS:
            yield _parsed(notation, time_axis)


def _parsed(notation: str, time_axis: int) -> WindowCall:
    call = parse_call(notation)
    if not call.is_sequence or call.output not in OUTPUTS or not call.starts_itself:
        raise CallError(
            f"`{notation}` cannot be called on a window: it takes a sequence X, names its output "
            'Y or y, and starts its states itself, as in "X, (h, c)=None -> Y, (h, c)"'
        )
    alone = len(call.results) == 1
    return WindowCall(
        call.text,
        tuple(argument == "X" for argument in call.arguments),
        None if alone else call.results.index(call.output),
        time_axis,
    )


def _settle(
    module: nn.Module, call: WindowCall, x: Tensor, window: int, gives_steps: bool | None
) -> WindowCall:
    """`call` with what is found of its output; raises if it does not work so."""
    few, more = [n for n in (2, 3, 4) if n != window][:2]  # so that no axis is mistaken
    is_notated = not call.text.endswith("->")
    if not is_notated:
        call = _with_output(module, call, _cut(x, few, window))
    shapes = {n: tuple(call.run(module, _cut(x, n, window)).shape) for n in (few, more)}
    axes = (call.time_axis, 1 - call.time_axis)
    can_be_steps = all(
        len(shape) > 1 and [shape[axis] for axis in axes] == [window, n]
        for n, shape in shapes.items()
    )
    can_be_one = all(shape and shape[0] == n for n, shape in shapes.items())
    if is_notated:
        gives_steps = _says_steps(call)
    elif gives_steps is None:
        gives_steps = can_be_steps
        if can_be_steps and can_be_one:
            gives_steps = _follows_the_window(module, call, x, window, few)
    if not (can_be_steps if gives_steps else can_be_one):
        wanted = f"({few}, {window}, ...)" if gives_steps else f"({few}, ...)"
        raise CallError(f"y has shape {shapes[few]} for {few} windows, expected {wanted}")
    call = replace(call, gives_steps=gives_steps)
    if not is_notated:
        call = replace(call, text=f"{call.text} {_told_output(call)}")
    _check_rows(module, call, _cut(x, more, window))
    return replace(call, needs_company=_breaks_alone(module, call, _cut(x, 1, window)))


def _says_steps(call: WindowCall) -> bool:
    if call.text in PLAIN_CALLS:
        return call.text == PLAIN_CALLS[0]
    return parse_call(call.text).output == "Y"


def _told_output(call: WindowCall) -> str:
    y = "Y" if call.gives_steps else "y"
    if False in call.arguments:
        return f"{y}, state"
    return y if call.output is None else f"{y}, ..."


def _with_output(module: nn.Module, call: WindowCall, windows: Tensor) -> WindowCall:
    """The output is what comes alone, or the first of several values."""
    outside = windows.movedim(1, call.time_axis)
    returned = module(*(outside if is_x else None for is_x in call.arguments))
    return replace(call, output=0) if isinstance(returned, tuple | list) else call


def _follows_the_window(
    module: nn.Module, call: WindowCall, x: Tensor, window: int, batch: int
) -> bool:
    """Whether the output has as many steps as the window, and not only as this one by chance."""
    other = window - 1 or 2
    try:
        y = call.run(module, _cut(x, batch, other))
    except Exception as error:  # a module that takes windows of one length alone
        raise _AmbiguousError(
            f"the output of {type(module).__name__} has {window} rows for a window of {window} "
            "steps: one a step, or a horizon of as many? Choose one:\n"
            + "\n".join(f'  --call "{text}"' for text in PLAIN_CALLS)
        ) from error
    return y.shape[call.time_axis] == other


def _check_rows(module: nn.Module, call: WindowCall, windows: Tensor) -> None:
    """A row's output is its own: the axis that was taken for the batch is none otherwise."""
    base = call.run(module, windows)
    allowed = ROW_TOLERANCE * max(1.0, float(base.abs().max()))
    for place in (0, len(windows) - 1):
        changed = windows.clone()
        changed[place] = _another(windows[place])
        others = [n for n in range(len(windows)) if n != place]
        error = (call.run(module, changed)[others] - base[others]).abs().max()
        if not float(error) <= allowed:
            raise CallError(
                f"a row of the batch changes the output of the others by {float(error):.1e}"
            )


def _another(row: Tensor) -> Tensor:
    return 1 - 2 * row if row.is_floating_point() else row.flip(0)  # ids that the model knows


def _breaks_alone(module: nn.Module, call: WindowCall, one: Tensor) -> bool:
    pair = call.run(module, torch.cat((one, one)))
    try:
        return call.run(module, one).shape != pair[:1].shape
    except Exception:  # whatever the user's code raises for want of its batch axis
        return True


def _cut(x: Tensor, count: int, steps: int) -> Tensor:
    """`count` windows (count, steps, ...) of the example, evenly spaced; it goes round."""
    starts = torch.linspace(0, max(x.shape[1] - steps, 0), count).long()
    index = (starts[:, None] + torch.arange(steps)) % x.shape[1]
    rows = torch.arange(count)[:, None] % x.shape[0]
    return x[rows, index]
