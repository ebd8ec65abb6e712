"""Which of an ONNX file's inputs and outputs are x, y, states and constants.

The user says it with `--call`, by place or by the file's own names: `"x, h, c -> y, h, c"`,
`"x, state, 16000 -> y, state"`, `"x, h, sr=16000 -> _, y, h"`; a number is an input's constant
value, `_` an output that is not wanted. Without that, names that go together (`h0` and `hn`,
`state` and `new_state`) are paired, then what has the same shape; what is left open comes back as
several bindings, to be told apart by running them.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from export.errors import CallError
from export.onnx_in.source import FileValue, OnnxModel

X, Y, UNWANTED = ("x", "X"), ("y", "Y"), "_"
RESERVED = {*X, *Y, "lengths"}  # ports of the artifact
MAX_BINDINGS = 24  # four states of one shape
# Words that say when a state is, not what it is.
_WHEN = {"in", "out", "input", "output", "new", "next", "prev", "previous", "old", "last"}
_WHEN |= {"init", "initial", "final", "i", "o", "n", "t", "cur", "current", "updated"}
_ABBREVIATED = {"hn": "h", "cn": "c", "hx": "h", "cx": "c", "hy": "h", "cy": "c"}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")

Number = int | float


@dataclass(frozen=True)
class BoundState:
    """A state: our name for it, the file's input and output."""

    name: str
    input: str
    output: str


@dataclass(frozen=True)
class Binding:
    """What each input and output of the file is; by the file's names."""

    x: str
    y: str
    states: tuple[BoundState, ...]
    constants: tuple[tuple[str, Number], ...] = ()

    def notation(self, model: OnnxModel) -> str:
        """As `--call` says it, by place."""
        ours = {s.input: s.name for s in self.states}
        ours |= {
            name: f"{value:g}" if value != int(value) else f"{int(value)}"
            for name, value in self.constants
        } | {self.x: "x"}
        theirs = {self.y: "y"} | {s.output: s.name for s in self.states}
        outputs = [theirs.get(value.name, UNWANTED) for value in model.outputs]
        while outputs and outputs[-1] == UNWANTED:
            outputs.pop()
        return f"{', '.join(ours[v.name] for v in model.inputs)} -> {', '.join(outputs)}"


def list_ports(model: OnnxModel) -> str:
    """The file's inputs and outputs, for error messages."""
    ins, outs = (", ".join(map(str, side)) for side in (model.inputs, model.outputs))
    return f"its inputs are {ins}; its outputs {outs}"


def may_carry(old: FileValue, new: FileValue) -> bool:
    """Whether an output can be the next call's input, by type and shape."""
    if old.dtype != new.dtype:
        return False
    if not new.shape:
        return True  # an output of which the file says nothing
    pairs = list(zip(old.shape, new.shape, strict=False))
    return len(old.shape) == len(new.shape) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in pairs
    )


def read_binding(model: OnnxModel, text: str) -> Binding:
    """The binding that the user's `--call` states.

    Raises:
        CallError: it is malformed, or does not fit the file.
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise CallError(f'`{text}` has no `->`; write it as in "x, h, c -> y, h, c"')
    items = _items(left)
    named = {name: number for name, eq, number in (i.partition("=") for i in items) if eq}
    _check_constants(named, model, text)
    ins = [value for value in model.inputs if value.name not in named]
    taken = _match([item for item in items if "=" not in item], ins, model, text)
    given = _match(_items(right), model.outputs, model, text)
    order = [name for _, name in taken]
    in_order = order == [value.name for value in ins if value.name in order]
    states_out = [pair for pair in given if pair[0] not in (*Y, UNWANTED)]
    if not in_order and any(item != name for item, name in states_out):
        raise CallError(
            f"`{text}` takes the file's own names in another order than the file, and names its "
            f"results by place; keep the file's order, or use its own names; {list_ports(model)}"
        )
    taken += [(number, name) for name, number in named.items()]
    constants = tuple((name, _number(i)) for i, name in taken if _NUMBER.fullmatch(i))
    names = {item: name for item, name in taken if not _NUMBER.fullmatch(item)}
    results = {item: name for item, name in given if item != UNWANTED}
    xs = [item for item in names if item in X]
    states = [item for item in names if item not in X]
    once = len(names) + len(constants) == len(taken) and len(set(results.values())) == len(results)
    if len(xs) != 1 or not states or set(states) != {*results} - {*Y} or not once:
        raise CallError(
            f"`{text}` takes {sorted(names)} and returns {sorted(results)}; expected one x, and "
            f"each state once on both sides; {list_ports(model)}"
        )
    bound = tuple(BoundState(_port_name(s), names[s], results[s]) for s in states)
    y = next((results[item] for item in results if item in Y), bound[0].output)
    return _checked(Binding(names[xs[0]], y, bound, constants), model)


def _items(side: str) -> list[str]:
    items = [item.strip() for item in re.sub(r"[()\[\]]|=\s*None", "", side).split(",")]
    return [re.sub(r"\s*=\s*", "=", item) for item in items if item]


def _check_constants(named: Mapping[str, str], model: OnnxModel, text: str) -> None:
    known = {value.name for value in model.inputs}
    for name, number in named.items():
        if name not in known:
            raise CallError(f"`{text}`: the file has no input `{name}`; {list_ports(model)}")
        if not _NUMBER.fullmatch(number):
            raise CallError(f"`{text}`: `{name}={number}` does not give a number")


def _number(text: str) -> Number:
    return float(text) if set(text) & set(".eE") else int(text)


def _match(
    items: Sequence[str], values: Sequence[FileValue], model: OnnxModel, text: str
) -> list[tuple[str, str]]:
    """Each item with the file's name: by name if all are the file's own, else by place."""
    places = {value.name: place for place, value in enumerate(values)}
    if items and all(item in places for item in items):
        return [(item, item) for item in items]
    if len(items) > len(values):
        raise CallError(f"`{text}` names {len(items)}, the file has fewer; {list_ports(model)}")
    for place, item in enumerate(items):
        if places.get(item, place) != place and item not in (*X, *Y):
            raise CallError(
                f"`{text}` has `{item}` at place {place + 1}, where the file has "
                f"`{values[place].name}`; keep the file's order, or use its own names for all; "
                f"{list_ports(model)}"
            )
    return list(zip(items, (value.name for value in values), strict=False))


def _checked(binding: Binding, model: OnnxModel) -> Binding:
    bound = {binding.x, *(s.input for s in binding.states), *(n for n, _ in binding.constants)}
    if missing := [value for value in model.inputs if value.name not in bound]:
        raise CallError(
            f"--call says nothing of the input {missing[0]}; if it is neither x nor a state, give "
            f"it a constant value, as in `{missing[0].name}=16000`"
        )
    ins, outs = ({v.name: v for v in side} for side in (model.inputs, model.outputs))
    for state in binding.states:
        if not may_carry(ins[state.input], outs[state.output]):
            raise CallError(
                f"state `{state.name}` goes in as {ins[state.input]} and comes out as "
                f"{outs[state.output]}; they must be alike to be carried; {list_ports(model)}"
            )
    return binding


def propose_bindings(model: OnnxModel) -> list[Binding]:
    """What the inputs and outputs may be, by their names and shapes.

    Raises:
        CallError: there is no state among them, or nothing can be told.
    """
    pairs = _pair_by_name(model)
    ins = [v for v in model.inputs if v.name not in {p.input for p in pairs}]
    outs = [v.name for v in model.outputs if v.name not in {p.output for p in pairs}]
    found = list(itertools.islice(_completed(model, pairs, ins, outs), MAX_BINDINGS + 1))
    if not found and pairs:  # x and y may have been taken for a state
        found = list(
            itertools.islice(
                _completed(model, [], list(model.inputs), [v.name for v in model.outputs]),
                MAX_BINDINGS + 1,
            )
        )
    if found and len(found) <= MAX_BINDINGS:
        return found
    if found:
        raise CallError(
            f"{model.name}: more than {MAX_BINDINGS} ways to pair its inputs and outputs; say "
            f'which they are, as in --call "x, h, c -> y, h, c"; {list_ports(model)}'
        )
    if not any(may_carry(i, o) for i in model.inputs for o in model.outputs):
        raise CallError(
            f"{model.name} has no state: no output has the type and shape of an input, so nothing "
            f"can be carried; {list_ports(model)}. Export the module itself (python -m export "
            "MODULE:FACTORY), or the ONNX file again with its states as inputs and outputs"
        )
    raise CallError(
        f"{model.name}: it cannot be told which inputs are x, states and constants; "
        f'{list_ports(model)}. Say it by place: --call "x, h, c -> y, h, c", a number for an '
        "input with one value, as in `sr=16000`"
    )


def _pair_by_name(model: OnnxModel) -> list[BoundState]:
    """Inputs and outputs whose names say the same, each once."""
    pairs: list[BoundState] = []
    for stem_of in (_stem, _stem_without_number):
        ins = [v for v in model.inputs if v.name not in {p.input for p in pairs}]
        outs = [v for v in model.outputs if v.name not in {p.output for p in pairs}]
        by_stem = _unique(outs, stem_of)
        for stem, value in _unique(ins, stem_of).items():
            other = by_stem.get(stem)
            if stem and other and may_carry(value, other):
                pairs.append(BoundState(_port_name(stem), value.name, other.name))
    order = [value.name for value in model.inputs]
    return sorted(pairs, key=lambda p: order.index(p.input))


def _unique(values: Sequence[FileValue], stem_of: Callable[[str], str]) -> dict[str, FileValue]:
    stems = [stem_of(v.name) for v in values]
    return {s: v for s, v in zip(stems, values, strict=True) if stems.count(s) == 1}


def _completed(
    model: OnnxModel, pairs: Sequence[BoundState], ins: Sequence[FileValue], outs: Sequence[str]
) -> Iterator[Binding]:
    """Bindings with x and the other states chosen among `ins`, y among what is left of `outs`."""
    by_name = {v.name: v for v in model.outputs}
    for x in ins:
        others = [v for v in ins if v is not x]
        for chosen in itertools.permutations(outs, len(others)):
            if not all(may_carry(v, by_name[o]) for v, o in zip(others, chosen, strict=True)):
                continue
            states = [*pairs, *_named(others, chosen, {p.name for p in pairs})]
            if not states:
                continue
            order = [value.name for value in model.inputs]
            states.sort(key=lambda s: order.index(s.input))
            left = [name for name in outs if name not in chosen]
            for y in left or [states[0].output]:
                yield Binding(x.name, y, tuple(states))


def _named(
    values: Sequence[FileValue], outputs: Sequence[str], taken: set[str]
) -> list[BoundState]:
    names = [_port_name(_stem(v.name) or v.name) for v in values]
    if len({*names, *taken}) < len(names) + len(taken):
        names = [_port_name(v.name) for v in values]
    return [BoundState(n, v.name, o) for n, v, o in zip(names, values, outputs, strict=True)]


def _stem(name: str) -> str:
    """What a name is about: `h0`, `h_in`, `new_h`, `hN` and `prev_h` are all `h`."""
    parts = re.findall(r"[A-Z]*[a-z]+|[A-Z]+|\d+", name.rsplit("/", 1)[-1])
    words = [_ABBREVIATED.get(part.lower(), part.lower()) for part in parts]
    kept = [word for word in words if word not in _WHEN and word != "0"]
    return "_".join(kept)


def _stem_without_number(name: str) -> str:
    return "_".join(word for word in _stem(name).split("_") if not word.isdigit())


def _port_name(name: str) -> str:
    clean = re.sub(r"\W+", "_", name).strip("_") or "state"
    clean = clean if not clean[0].isdigit() else f"state_{clean}"
    return f"state_{clean}" if clean in RESERVED else clean
