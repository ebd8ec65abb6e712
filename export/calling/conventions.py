"""The ways in which a module may be called, as candidates in the notation of `--call`.

Read in public implementations; which of them are tried depends on the signature of `forward`, and
for a module that may be called with x alone, on what it gives back.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor, nn

from export.calling.tree import Keyed, Listed, Tree, spell

COMMON_CALLS = (  # most common first
    "X, (h, c)=None -> Y, (h, c)",
    "x, (h, c) -> h, c",
    "X, h=None -> Y, h",
    "x, h -> h",
    "x, (h, c) -> y, (h, c)",
    "x, h -> y, h",
    "x, h, c -> h, c",
)
STARTING_CALLS = (  # of a cell that may be given None: where it starts then is where it starts
    "x, (h, c)=None -> h, c",
    "x, (h, c)=None -> y, (h, c)",
    "x, h=None -> h",
    "x, h=None -> y, h",
    "x, h=None, c=None -> h, c",
)
RARER_CALLS = (  # tried where none of the common ones works
    "X, (h, c) -> Y, (h, c)",
    "X, h -> Y, h",
    "X, (h, c) -> y, (h, c)",
    "X, h -> y, h",
    "X, (h, c)=None -> y, (h, c)",
    "X, h=None -> y, h",
    *STARTING_CALLS,
    "x, h, c -> y, h, c",
    "x, h, c -> y, (h, c)",
    "X, h, c -> Y, h, c",
    "X, h, c -> Y, (h, c)",
    "x, [h, c] -> h, c",
    "x, [h, c] -> y, [h, c]",
    "x, (h,) -> h",
    "x, (h,) -> (h,)",
    "x, (h,) -> y, (h,)",
    "x, [h] -> y, [h]",
    "x, {h, c} -> {h, c}",
    "(x, (h, c)) -> h, c",
    "(x, h, c) -> h, c",
    "(x, h) -> h",
    "(x, (h, c)) -> y, (h, c)",
    "(x, h) -> y, h",
)
STATE_FIRST = (
    "(h, c), x -> h, c",
    "h, x -> h",
    "(h, c), x -> y, (h, c)",
    "h, x -> y, h",
    "h, c, x -> h, c",
    "(h, c), X -> Y, (h, c)",
    "h, X -> Y, h",
    "h, x -> h, y",
    "(h, c), x -> (h, c), y",
)
HIDDEN_STATE = ("X -> Y", "X -> y")  # then the states are inside
WITHOUT_STATE = (*HIDDEN_STATE, "x -> y")  # or kept on the module

_INPUT = re.compile(
    r"(x|xs|x_?t|inp|inputs?|input_\w*|sequences?|seq|data|src|obs|tokens?|u)", re.I
)
_STATE = re.compile(
    r"(h|c|s|hc|hx|cx|h_?t\w*|h_?\w*prev\w*|c_?\w*prev\w*|prev\w*|hidden\w*|states?)", re.I
)
_RESERVED = {"x", "X", "y", "Y", "t", "lengths", "_", "None", "True", "False"}


def conventions(module: nn.Module, x: Tensor) -> list[Sequence[str]]:
    """Candidates, in groups: a later one is tried only where the earlier ones fail.

    Args:
        x: (B, T, ...), a piece of the example.
    """
    names = _parameters(module)
    flat = _flat_states(names)
    if len(names) > 1 and _STATE.fullmatch(names[0]) and any(map(_INPUT.fullmatch, names[1:])):
        return [STATE_FIRST]
    unclear = len(names) > 1 and not _INPUT.fullmatch(names[0])
    rarer = (*RARER_CALLS, *flat, *(STATE_FIRST if unclear else ()))
    starting = STARTING_CALLS if _may_be_none(module) else ()
    return [(*starting, *COMMON_CALLS), _returned(module, x), rarer]


def is_state_name(name: str) -> bool:
    """Whether people call a state so."""
    return _STATE.fullmatch(name) is not None


def _parameters(module: nn.Module) -> list[str]:
    """The names of the positional parameters of `forward`."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # compiled: it has none to show
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in kinds]


def _may_be_none(module: nn.Module) -> bool:
    """Whether the state that `forward` takes has None for a default."""
    try:
        parameters = [*inspect.signature(module.forward).parameters.values()]
    except (TypeError, ValueError):  # compiled: it has none to show
        return False
    return len(parameters) > 1 and parameters[1].default is None


def _flat_states(names: list[str]) -> list[str]:
    """States given apart, under their own names: `x, h, c, n -> ...`."""
    states = names[1:]
    if len(states) < 2 or _RESERVED & {*states}:
        return []
    flat = ", ".join(states)
    left = [f"x, {flat}"]
    right = [flat, f"y, {flat}", f"y, ({flat})"]
    calls = [f"{a} -> {b}" for a in left for b in right]
    none = ", ".join(f"{name}=None" for name in states)
    whole = [f"X, {flat} -> Y, {flat}", f"X, {flat} -> Y, ({flat})"]
    return [*calls, *whole, f"X, {none} -> Y, {flat}", f"X, {none} -> Y, ({flat})"]


def _returned(module: nn.Module, x: Tensor) -> list[str]:
    """Calls of a module that starts itself, its states in the tree in which they come back."""
    found: list[str] = []
    for given, piece in (("X", x), ("x", x[:, 0])):
        try:
            with torch.no_grad():
                returned = module(piece)
        except Exception:  # it needs more than x, or takes the other
            continue
        found += _answered(module, returned, given)
    simple = {"X, (h, c)=None -> Y, (h, c)", "X, h=None -> Y, h", *STARTING_CALLS}
    return [text for text in dict.fromkeys(found) if text not in simple]


def _answered(module: nn.Module, returned: object, given: str) -> list[str]:
    """The calls with `given` (x or X) that may return what was returned."""
    names = _parameters(module)
    found: list[str] = []
    for is_keyed, rest, template in _splits(returned):
        states = _tree(rest)
        if states is None or len(names) < 2:
            continue
        tree = spell(states)
        for letter in "Yy" if given == "X" else "y":
            back = template.format(y=letter, states=tree)
            found.append(f"{given}, {tree}=None -> {back}")
            if is_keyed and names[1] not in _RESERVED:
                found.append(f"{given}, {names[1]}={tree}=None -> {back}")
    return found


def _splits(returned: object) -> list[tuple[bool, object, str]]:
    """(whether it is a dict or object, what else than y came back, the right side) a reading."""
    if isinstance(returned, tuple | list) and not hasattr(returned, "_fields"):
        if len(returned) == 2:
            return [(False, returned[1], "{y}, {states}")]
        if len(returned) > 2:
            rest = ", ".join("_" for _ in returned[2:])
            first = (False, returned[1], "{y}, {states}, " + rest)
            return [first, (False, tuple(returned[1:]), "{y}, {states}")]
        return []
    keyed = _keyed(returned)
    return [
        (True, value, f"{{{{{out}: {{y}}, {key}: {{states}}}}}}")
        for out, output in keyed.items()
        for key, value in keyed.items()
        if key != out and isinstance(output, Tensor)
    ]


def _keyed(returned: object) -> Mapping[str, object]:
    if isinstance(returned, Mapping):
        return {str(key): value for key, value in returned.items() if str(key).isidentifier()}
    if isinstance(returned, tuple) and hasattr(returned, "_fields"):
        return dict(zip(returned._fields, returned, strict=True))
    if is_dataclass(returned) and not isinstance(returned, type):
        return {field.name: getattr(returned, field.name) for field in fields(returned)}
    return {}


def _tree(value: object) -> Tree | None:
    """The tree of states that a value has, h and c or numbered; None: it has other things."""
    pairs = [p for p in _pairs(value) if isinstance(p, tuple | list) and len(p) == 2]
    count = _count(value)
    if count < 1:
        return None
    names = iter(["h"] if count == 1 else ["h", "c"])
    if count > 2:
        letters = "hc" if 2 * len(pairs) == count else "s"
        size = len(letters)
        names = iter(f"{letters[i % size]}{i // size + 1}" for i in range(count))

    def build(part: object) -> Tree:
        if isinstance(part, Tensor):
            return next(names)
        if isinstance(part, Mapping):
            return Keyed(tuple((str(key), build(inner)) for key, inner in part.items()))
        inner = tuple(build(each) for each in part)  # type: ignore[attr-defined]
        return Listed(inner) if isinstance(part, list) else inner

    return build(value)


def _pairs(value: object) -> list[object]:
    return list(value) if isinstance(value, tuple | list) else []


def _count(value: object) -> int:
    """How many tensors a tree holds; a negative number where it holds something else."""
    if isinstance(value, Tensor):
        return 1
    parts = [*value.values()] if isinstance(value, Mapping) else _pairs(value)
    counts = [_count(part) for part in parts]
    return sum(counts) if counts and min(counts) > 0 else -1
