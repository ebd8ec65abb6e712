"""The notation of `--call`: how a module is called, `"x, (h, c) -> h, c"`.

    call     := items "->" items [";" axes]
    items    := item ("," item)*
    item     := [NAME "="] value ["=None"]
    value    := NAME [":" WIDTH] | group | None | True | False | NUMBER
    group    := "(" items [","] ")" | "[" items [","] "]" | "{" entry ("," entry)* "}"
    entry    := NAME [":" value]
    axes     := "X is (time, batch, ...)" | "X is (batch, time, ...)"

- `x` is one step's input, `X` a sequence's; `y` and `Y` likewise the output, and `X -> y` gives the
  output of the last step alone. Several y (or Y) are joined on their last axis.
- A name on both sides is a state. Without a y the output is the state `h`, or else the first state;
  `NAME=y` on the right says that this state is the output too.
- Parentheses are tuples, brackets lists, braces dicts (on the right also attributes of an object).
- `=None` says that the module starts that state itself when it is given None.
- `NAME=value` on the left is a keyword argument.
- `NAME:WIDTH` on the left is a further step input: so many of the last columns of the example, in
  the order written. `lengths` and `t` (the step's index) are made by export.
- A name on the right alone (`_`, `attention`) is dropped.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property

from export.calling.tree import Fixed, Keyed, Listed, Named, Tree, branches, leaves
from export.errors import CallError

INPUTS, OUTPUTS = ("x", "X"), ("y", "Y")
LENGTHS, COUNTER = "lengths", "t"
AXES = {"X is (time, batch, ...)": 0, "X is (batch, time, ...)": 1}
_NUMBER = r"-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
_TOKEN = re.compile(rf"\s*({_NUMBER}|[A-Za-z_][A-Za-z0-9_]*|[][(){{}},:=])")
_WORDS = {"None": None, "True": True, "False": False}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Call:
    """A parsed notation."""

    text: str
    arguments: tuple[Tree, ...]
    results: tuple[Tree, ...]
    optional: frozenset[str] = frozenset()  # states that may be None
    widths: dict[str, int] = field(default_factory=dict)  # side input -> its columns
    shown: str | None = None  # the state that is marked as the output
    time_axis: int | None = None  # of X, where the notation says it

    @cached_property
    def starts_itself(self) -> bool:
        """The module starts a state itself."""
        return bool(self.optional)

    @cached_property
    def is_sequence(self) -> bool:
        """The module takes a time axis, not one step."""
        return "X" in leaves(self.arguments)

    @cached_property
    def states(self) -> tuple[str, ...]:
        """The states' names, in the order of the arguments."""
        made = {*INPUTS, *self.widths, *self.made}
        return tuple(n for n in leaves(self.arguments) if n not in made)

    @cached_property
    def made(self) -> tuple[str, ...]:
        """Which of `lengths` and `t` export makes: those that do not come back."""
        back = leaves(self.results)
        return tuple(n for n in (LENGTHS, COUNTER) if n in leaves(self.arguments) and n not in back)

    @cached_property
    def dropped(self) -> tuple[str, ...]:
        """Names on the right alone."""
        kept = {*OUTPUTS, *self.states}
        return tuple(dict.fromkeys(n for n in leaves(self.results) if n not in kept))

    @cached_property
    def is_last_only(self) -> bool:
        """The module takes a sequence and gives the output of its last step."""
        return self.is_sequence and self.output != "Y"

    @cached_property
    def output(self) -> str:
        """The name of the output: y, Y, or a state."""
        named = next((n for n in leaves(self.results) if n in OUTPUTS), self.shown)
        if named is None:
            return "h" if "h" in self.states else next(iter(self.states), "")
        return named


def parse_call(text: str) -> Call:
    """Parse the notation.

    Raises:
        CallError: it is malformed, or its two sides do not name the same states.
    """
    left, arrow, rest = text.partition("->")
    if not arrow:
        raise CallError(f"`{text}` has no `->`; write it as in `x, (h, c) -> h, c`")
    right, semicolon, axes = rest.partition(";")
    results = _Parser(right, text, None)
    returned = results.top()
    arguments = _Parser(left, text, frozenset(leaves(returned)))
    call = Call(
        re.sub(r"\s+", " ", f"{left}->{right}".strip()),
        arguments.top(),
        returned,
        frozenset(arguments.optional),
        arguments.widths,
        results.shown,
        _time_axis(axes, text) if semicolon else None,
    )
    _check(call)
    return call


def _time_axis(axes: str, text: str) -> int:
    words = re.sub(r"\s+", " ", axes.strip())
    if words not in AXES:
        raise CallError(f"`{text}`: got `{words}` after `;`, expected one of: {'; '.join(AXES)}")
    return AXES[words]


def _check(call: Call) -> None:
    if any(_holds_keyword(branch) for item in call.arguments for branch in branches(item)):
        raise CallError(f"`{call.text}`: a keyword stands inside a group; write `{{key: value}}`")
    given, returned = leaves(call.arguments), leaves(call.results)
    inputs = [n for n in given if n in INPUTS]
    if len(inputs) != 1:
        raise CallError(f"`{call.text}` needs one x (a step) or X (a sequence) among its arguments")
    if set(returned) & {*INPUTS, *call.widths}:
        raise CallError(f"`{call.text}` returns an input; name an output y, or Y if a sequence")
    lost = [n for n in call.states if n not in returned]
    if lost:
        alone = sorted({*returned} - {*OUTPUTS, "_"} - {*call.states})
        raise CallError(
            f"`{call.text}` takes the states {sorted(set(call.states))} and returns "
            f"{sorted(({*returned} & {*call.states}) | {*alone})}; name each state on both sides. "
            f"If `{lost[0]}` is a further input of each step, say how many of the example's last "
            f"columns it takes, as in `{lost[0]}:1`"
        )
    repeated = [n for n in dict.fromkeys(call.states) if call.states.count(n) > 1]
    repeated += [n for n in dict.fromkeys(call.states) if returned.count(n) > 1]
    if repeated:
        raise CallError(
            f"`{call.text}` names `{repeated[0]}` twice; name each state once on both sides"
        )
    if {*OUTPUTS} <= {*returned}:
        raise CallError(f"`{call.text}` returns both y and Y; name what is dropped `_`")
    if call.shown and call.shown not in call.states:
        raise CallError(f"`{call.text}`: `{call.shown}=y` marks a state, and it is none")
    if "Y" in returned and not call.is_sequence:
        raise CallError(f"`{call.text}` takes one step x; name its output y")
    if call.is_sequence and call.output not in OUTPUTS and not call.shown:
        raise CallError(f"`{call.text}` takes a sequence X; name its output Y, or y if it is one")
    if not call.output:
        raise CallError(f"`{call.text}` names no output; name it y, or Y if it is a sequence")
    if LENGTHS in call.made and not call.is_sequence:
        raise CallError(f"`{call.text}` takes one step x, and that has no `{LENGTHS}`")


def _holds_keyword(tree: Tree) -> bool:
    return isinstance(tree, Named) or any(_holds_keyword(branch) for branch in branches(tree))


class _Parser:
    """One side; `returned` are the other side's names while the left one is read, else None."""

    def __init__(self, side: str, text: str, returned: frozenset[str] | None) -> None:
        self._text = text
        self._returned = returned
        self._tokens = _TOKEN.findall(side)
        self.optional: set[str] = set()
        self.widths: dict[str, int] = {}
        self.shown: str | None = None
        if "".join(self._tokens) != re.sub(r"\s+", "", side):
            raise CallError(f"`{text}` cannot be read at `{side.strip()}`; see --help for the form")

    def top(self) -> tuple[Tree, ...]:
        found = [self._item()]
        while self._take(","):
            found.append(self._item())
        if self._tokens:
            raise CallError(f"`{self._text}`: `{self._tokens[0]}` is not expected there")
        return tuple(found)

    def _take(self, token: str, after: str = "") -> bool:
        wanted = [token, after] if after else [token]
        if self._tokens[: len(wanted)] != wanted:
            return False
        del self._tokens[: len(wanted)]
        return True

    def _item(self) -> Tree:
        if not self._tokens:
            raise CallError(f"`{self._text}` ends too early")
        item = self._value()
        if self._returned is None:
            return self._marked(item)
        if self._take("=", "None"):
            return self._or_none(item)
        if isinstance(item, str) and self._take("="):
            inner = self._value()
            if self._take("=", "None"):
                self.optional |= {*leaves(inner)}
            return Named(item, inner)
        return item

    def _marked(self, item: Tree) -> Tree:
        """On the right: `h=y`."""
        if isinstance(item, str) and self._tokens[:1] == ["="] and self._tokens[1:2] in (["y"],):
            del self._tokens[:2]
            if self.shown:
                raise CallError(f"`{self._text}` marks two states as the output; mark one")
            self.shown = item
        return item

    def _or_none(self, item: Tree) -> Tree:
        if isinstance(item, str) and item not in (self._returned or ()):
            return Named(item, Fixed(None))  # no state: the keyword gets None
        self.optional |= {*leaves(item)}
        return item

    def _value(self) -> Tree:
        token = self._tokens.pop(0) if self._tokens else ""
        if token in _CLOSING:
            return self._group(token)
        if token in _WORDS:
            return Fixed(_WORDS[token])
        if re.fullmatch(_NUMBER, token):
            return Fixed(float(token) if re.search(r"[.eE]", token) else int(token))
        if not token.isidentifier():
            what = f"`{token}` is not expected there" if token else "it ends too early"
            raise CallError(f"`{self._text}`: {what}")
        if self._returned is not None and self._take(":"):
            self._width(token)
        return token

    def _width(self, name: str) -> None:
        width = self._tokens.pop(0) if self._tokens else ""
        if not width.isdigit() or int(width) < 1:
            raise CallError(f"`{self._text}`: `{name}:{width}`, expected a width as in `{name}:1`")
        if name in (*INPUTS, LENGTHS) or name in (self._returned or ()) or name in self.widths:
            raise CallError(
                f"`{self._text}`: `{name}` is no further input, so it takes no width; "
                "a further input stands once, and on the left alone"
            )
        self.widths[name] = int(width)

    def _group(self, opening: str) -> Tree:
        closing = _CLOSING[opening]
        found: list[tuple[str, Tree]] = []
        while not self._take(closing):
            if not self._tokens:
                raise CallError(f"`{self._text}`: a `{opening}` is not closed")
            if found and not self._take(","):
                raise CallError(f"`{self._text}`: `{self._tokens[0]}` is not expected there")
            if found and self._take(closing):  # (h,)
                break
            if not self._tokens:
                raise CallError(f"`{self._text}`: a `{opening}` is not closed")
            found.append(self._entry() if opening == "{" else ("", self._item()))
        if not found:
            raise CallError(f"`{self._text}`: `{opening}{closing}` holds nothing")
        if opening == "{":
            return Keyed(tuple(found))
        inner = tuple(tree for _, tree in found)
        return Listed(inner) if opening == "[" else inner

    def _entry(self) -> tuple[str, Tree]:
        key = self._tokens.pop(0)
        if not key.isidentifier():
            raise CallError(f"`{self._text}`: `{key}` is not expected there; write `{{key: h}}`")
        if self._take(":"):
            return key, self._item()
        if self._take("=", "None"):
            return key, self._or_none(key)
        return key, self._marked(key) if self._returned is None else key
