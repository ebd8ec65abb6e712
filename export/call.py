"""The notation of `--call`: how a module is called, `"x, (h, c) -> h, c"`.

    call   := items "->" items
    items  := item ("," item)*
    item   := NAME ["=None"] | "(" items ")" ["=None"]

`x` is one step's input, `X` a sequence's; `y` and `Y` likewise the output, and `X -> y` gives the
output of the last step alone. Every other name is a state, and stands on both sides. Parentheses
are tuples or lists. `=None` says that the module starts its state itself when it is given None.
Without a y, the first state is the output.
"""

import re
from dataclasses import dataclass

from export.errors import CallError

_TOKEN = re.compile(r"\s*(->|=\s*None|[(),]|[A-Za-z_][A-Za-z0-9_]*)")
INPUTS, OUTPUTS = ("x", "X"), ("y", "Y")

Tree = str | tuple["Tree", ...]


@dataclass(frozen=True)
class Call:
    """A parsed notation."""

    text: str
    arguments: tuple[Tree, ...]
    results: tuple[Tree, ...]
    starts_itself: bool  # the state may be None

    @property
    def is_sequence(self) -> bool:
        """The module takes a time axis, not one step."""
        return "X" in self.arguments

    @property
    def states(self) -> tuple[str, ...]:
        """The states' names, in the order of the arguments."""
        return tuple(n for n in leaves(self.arguments) if n not in INPUTS)

    @property
    def is_last_only(self) -> bool:
        """The module takes a sequence and gives the output of its last step."""
        return self.is_sequence and self.output != "Y"

    @property
    def output(self) -> str:
        """The name of the output: y, Y, or the first state."""
        return next((n for n in leaves(self.results) if n in OUTPUTS), self.states[0])


def leaves(tree: Tree) -> tuple[str, ...]:
    """The names of a tree, left to right."""
    if isinstance(tree, str):
        return (tree,)
    return tuple(name for branch in tree for name in leaves(branch))


def parse_call(text: str) -> Call:
    """Parse the notation.

    Raises:
        CallError: it is malformed, or its two sides do not name the same states.
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise CallError(f"`{text}` has no `->`; write it as in `x, (h, c) -> h, c`")
    arguments = _Parser(left, text).items()
    results = _Parser(right, text).items()
    call = Call(re.sub(r"\s+", " ", text.strip()), arguments, results, "=" in left)
    _check(call)
    return call


def _check(call: Call) -> None:
    inputs = [n for n in leaves(call.arguments) if n in INPUTS]
    given = set(call.states)
    returned = {n for n in leaves(call.results) if n not in OUTPUTS}
    if len(inputs) != 1 or inputs[0] not in call.arguments:
        raise CallError(f"`{call.text}` needs one x (a step) or X (a sequence) among its arguments")
    if not given or given != returned or len(call.states) != len(given):
        raise CallError(
            f"`{call.text}` takes the states {sorted(given)} and returns {sorted(returned)}; "
            "name each state once on both sides"
        )
    if call.is_sequence and call.output not in OUTPUTS:
        raise CallError(f"`{call.text}` takes a sequence X; name its output Y, or y if it is one")


class _Parser:
    def __init__(self, side: str, text: str) -> None:
        self._text = text
        self._tokens = _TOKEN.findall(side)
        if "".join(self._tokens).replace(" ", "") != re.sub(r"\s+", "", side):
            raise CallError(f"`{text}` cannot be read at `{side.strip()}`; see --help for the form")

    def items(self) -> tuple[Tree, ...]:
        found = self._items()
        if self._tokens:
            raise CallError(f"`{self._text}`: `{self._tokens[0]}` is not expected there")
        return found

    def _items(self) -> tuple[Tree, ...]:
        found = [self._item()]
        while self._tokens and self._tokens[0] == ",":
            self._tokens.pop(0)
            found.append(self._item())
        return tuple(found)

    def _item(self) -> Tree:
        if not self._tokens:
            raise CallError(f"`{self._text}` ends too early")
        token = self._tokens.pop(0)
        item: Tree = token
        if token == "(":
            item = self._items()
            if not self._tokens or self._tokens.pop(0) != ")":
                raise CallError(f"`{self._text}`: a `(` is not closed")
        elif not token.isidentifier():
            raise CallError(f"`{self._text}`: `{token}` is not expected there")
        if self._tokens and self._tokens[0].startswith("="):
            self._tokens.pop(0)
        return item
