"""Why no way to call a module was found: what was tried, its reasons, and what may be said instead.

The way that went furthest is the likeliest to be meant. So reasons of our own, which stand for
calls that ran through, come first; then those that the user's code raised, later lines first.
Reasons that differ in numbers only are one.
"""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from export.calling.call import Call
from export.calling.conventions import is_state_name
from export.calling.shapes import guessed_shapes
from export.errors import CallError, MixingError
from export.user_code import describe, users_line

MAX_REASONS = 4
MAX_CALLS = 2  # that are shown beside a reason
MAX_SHAPES = 6  # of those tried, in the error
_BINDING = re.compile(r"\(\) (missing|takes|got)\b")  # Python's: the arguments have no places


@dataclass
class _Reason:
    """One reason and the calls that failed by it."""

    text: str
    rank: tuple[int, int]
    calls: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        more = len(self.calls) - MAX_CALLS
        shown = "  |  ".join(self.calls[:MAX_CALLS]) + (f"  |  {more} more" if more > 0 else "")
        return f"  {shown}: {self.text}"


class Refusal:
    """Gathers what was tried with one module, and words the error."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self._module, self._x = module, x
        self._tried: list[tuple[str, Exception]] = []

    def add(self, call: str, error: Exception) -> None:
        self._tried.append((call, error))

    def text(self, told: Call | None) -> str:
        """What was tried and why it failed, likelier ones first, then what may be said instead.

        Args:
            told: the call that the user gave, if one was given.
        """
        return (
            f"no way was found to call {signature_of(self._module)} with x of "
            f"{describe_features(self._x)}; tried:\n"
            + "\n".join([*self.reasons(), *self._advice(told)])
        )

    def reasons(self) -> list[str]:
        """A line each, likelier ones first."""
        reasons = self._reasons()
        shown = [*map(str, reasons[:MAX_REASONS])]
        if len(reasons) > MAX_REASONS:
            shown.append(f"  and {len(reasons) - MAX_REASONS} less likely")
        return shown

    def _reasons(self) -> list[_Reason]:
        """Distinct ones, likelier ones first; of a call that ran through once, only why not."""
        ran = {call for call, error in self._tried if isinstance(error, CallError)}
        found: dict[str, _Reason] = {}
        for call, error in self._tried:
            is_ours = isinstance(error, CallError)
            if call in ran and not is_ours:
                continue
            text = str(error).splitlines()[0] if is_ours else describe(error)
            reason = found.setdefault(re.sub(r"\d+", "#", text), _Reason(text, _rank(call, error)))
            if call not in reason.calls:
                reason.calls.append(call)
        return sorted(found.values(), key=lambda reason: reason.rank)

    def _advice(self, told: Call | None) -> list[str]:
        lines = []
        if self._x.ndim == 2 and not _has_embedding(self._module):
            lines.append(
                "The example holds integers, which are taken for token ids; write numbers as floats"
            )
        fits = any(_BINDING.search(str(error)) is None for _, error in self._tried)
        if told is None or not fits:
            return [*lines, _suggestion(self._module)]
        if told.states and not told.optional.issuperset(told.states):
            shapes = _shapes_tried(self._module, told, self._x)
            lines.append(
                f"Its states were guessed from its weights: {shapes}, .. a row. To say their "
                "shapes, give the module a method `init_state(batch)` that returns them"
            )
        return lines or ["`python -m export --help` has the notation"]


def signature_of(module: nn.Module) -> str:
    """`Net, forward(x, h=None)`; a compiled module shows no signature."""
    names = [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"[:40]
        for p in _parameters(module)
    ]
    shown = f", forward({', '.join(names)})," if names else ""
    return f"{type(module).__name__}{shown}"


def describe_features(x: Tensor) -> str:
    """What one step of x, (B, T, ...), is."""
    if x.ndim == 2:
        return "token ids, one a step"
    shape = tuple(x.shape[2:])
    return f"{shape[0]} features a step" if len(shape) == 1 else f"shape {shape} a step"


def takes_x_alone(module: nn.Module) -> bool:
    """Whether `forward` has no place for a state."""
    return len(_parameters(module)) == 1


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # compiled: it has none to show
        return []


def _rank(call: str, error: Exception) -> tuple[int, int]:
    if isinstance(error, MixingError):
        return 0, 0
    if isinstance(error, CallError):
        return 1, 0
    where = users_line(error)
    if where is None or call.startswith("("):  # rare, and whatever takes x alone has a place for it
        return (4 if _BINDING.search(str(error)) else 3), 0
    return 2, -where[1]


def _suggestion(module: nn.Module) -> str:
    """What the signature suggests to say with `--call`."""
    parameters = _parameters(module)
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    if takes_x_alone(module):
        return f"It takes {names[0]} alone, so its states must be inside it, or kept on it"
    if len(names) == 2:
        said = _choices(
            ('"x, h -> y, h"', '"x, (h, c) -> y, (h, c)"', '"x, [h1, h2] -> y, [h1, h2]"')
        )
        return (
            f"Say with --call whether the state, `{names[1]}`, is a tensor, a tuple or a list: "
            f"{said}; X and Y for a sequence, no y where the state is all that it returns"
        )
    states = [name for name in names[1:] if is_state_name(name)]
    if len(states) == len(names) - 1:
        flat = ", ".join(states)
        return (
            f'{len(states)} states by their names: --call "x, {flat} -> y, {flat}"; without y '
            "where it returns them alone, in parentheses where they come back as a tuple"
        )
    if names:
        return (
            f"Say with --call what {', '.join(f'`{name}`' for name in names[1:])} are: a state "
            "stands on both sides (h), a further column of the example has its width (mask:1), "
            'anything else is fixed (True): "x, h, mask:1, True -> y, h"'
        )
    return 'Say how it is called, for example --call "x, (h, c) -> h, c"'


def _choices(texts: Sequence[str]) -> str:
    return f"{', '.join(texts[:-1])} or {texts[-1]}"


def _shapes_tried(module: nn.Module, call: Call, x: Tensor) -> str:
    groups = guessed_shapes(module, call, x, False)
    shown = [*next(groups, [])[:4], *(group[0] for group in groups if group)]
    shapes = dict.fromkeys(outside[0].spec.shape for outside in shown)
    return ", ".join(map(str, [*shapes][:MAX_SHAPES]))


def _has_embedding(module: nn.Module) -> bool:
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return any(isinstance(m, kinds) or _is_scripted(m) for m in module.modules())


def _is_scripted(module: nn.Module) -> bool:
    """A scripted module may hold an embedding that does not show; its class is none of ours."""
    return hasattr(module, "original_name")
