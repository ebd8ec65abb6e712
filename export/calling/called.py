"""How a torch module is called: found out by calling it.

The common conventions are tried with the example. Ways that compute the same are one; what works in
more than one way is an error that lists them.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from export.calling.attributes import Attributes
from export.calling.binding import fill
from export.calling.call import AXES, Call, parse_call
from export.calling.conventions import WITHOUT_STATE, conventions
from export.calling.extras import Forms, candidate_forms
from export.calling.lift import Lifted
from export.calling.module import CalledModule, Plain
from export.calling.probing import (
    STEPS,
    Raised,
    Way,
    is_close,
    probe,
    probe_input,
    random_state,
    ways_of,
)
from export.calling.refusal import Refusal
from export.calling.rows import RowByRow
from export.calling.tree import Keyed, Listed, Named, Tree, branches
from export.errors import CallError, CarryError, MixingError

Found = CalledModule | RowByRow


def find_call(module: nn.Module, x: Tensor, notation: str | None = None) -> Found:
    """Find out how `module` is called.

    Args:
        module: in eval mode. Left as it was, whatever it keeps on itself.
        x: (B, T, ...), a piece of the example; its features and dtype count.
        notation: the `--call` that the user gave; None: the common ones are tried.
    Raises:
        CallError: none works (each with its reason), or several do.
    """
    pristine = Attributes(module)
    try:
        return _Search(module, x, pristine).find(parse_call(notation) if notation else None)
    finally:
        pristine.restore()


class _Search:
    def __init__(self, module: nn.Module, x: Tensor, pristine: Attributes) -> None:
        self._module = module
        self._x = x
        self._pristine = pristine
        self._told = False
        self._refusal = Refusal(module, x)
        self._raised: Raised = {}
        self._mixing: set[str] = set()  # calls that work, but with rows that change each other

    def find(self, told: Call | None) -> Found:
        self._told = told is not None
        if told:
            groups: list[Sequence[Call]] = [[told], [_with_lists(told)]] if told.states else []
            bare = [] if told.states else [told]
        else:
            texts = conventions(self._module, self._x)
            self._pristine.restore()
            groups = [self._fitting(group) for group in texts]
            bare = [parse_call(text) for text in WITHOUT_STATE]
        attempts: list[Callable[[], list[Found]]] = [
            *(lambda group=group: self._tried(group) for group in groups),
            *(lambda call=call: self._tried([call]) for call in bare),
            lambda: self._lifted(bare),
            lambda: self._tried([*(groups[0] if groups else ()), *bare], rows=True),
        ]
        for attempt in attempts:
            found = self._distinct(attempt())
            if len(found) == 1:
                return found[0]
            if found:
                raise CallError(self._several(found))
        raise CallError(self._refusal.text(told))

    def _fitting(self, texts: Iterable[str]) -> list[Call]:
        """Those of `texts` whose arguments `forward` has places for."""
        calls = [parse_call(text) for text in texts]
        try:
            signature = inspect.signature(self._module.forward)
        except (TypeError, ValueError):  # compiled: it has none to show
            return calls
        fitting = []
        for call in calls:
            positional, keywords = fill(call, dict.fromkeys((*call.states, "x", "X")))
            try:
                signature.bind(*positional, **keywords)
            except TypeError:
                continue
            fitting.append(call)
        return fitting

    def _tried(self, calls: Iterable[Call], rows: bool = False) -> list[Found]:
        found: list[Found] = []
        for call in calls:
            if rows and call.text in self._mixing:
                continue
            for way in ways_of(call, rows):
                try:
                    one = probe(self._module, self._x, call, way, self._raised)
                    if not self._told:
                        self._check_state_counts(one)
                    found.append(RowByRow(one, probe_input(self._x, 1)) if rows else one)
                except CarryError as error:
                    raise CarryError(
                        f"{type(self._module).__name__}: {call.text}: {error}"
                    ) from error
                except Exception as error:  # whatever the user's code raises is the reason
                    self._refusal.add(_shown(call), error)
                    if isinstance(error, MixingError):
                        self._mixing.add(call.text)
                finally:
                    self._pristine.restore()
                if found and rows:  # with and without an axis of the batch it is the same
                    return found
        return found

    def _check_state_counts(self, one: CalledModule) -> None:
        """What is taken for a state must make a difference, or it is something else."""
        batch = 1 if one.layout.is_row else 2
        x, state = probe_input(self._x, batch), random_state(one, batch)
        with torch.no_grad():
            first, other = one.run(x, state), one.run(x, one.initial(batch))
        names = [spec.name for spec in one.states]
        pairs = [(first[0], other[0]), *((first[1][n], other[1][n]) for n in names)]
        if all(torch.equal(a, b) for a, b in pairs):
            raise CallError("nothing depends on what would be its state")

    def _lifted(self, calls: Iterable[Call]) -> list[Found]:
        """The module hides its states: its layers' are lifted out."""
        for call in calls:
            if not call.is_sequence or call.states:
                continue
            found = [one for way in ways_of(call, False) for one in self._lift(call, way)]
            if found:  # a module of one output a step also has a last one
                return found
        return []

    def _lift(self, call: Call, way: Way) -> list[Found]:
        for forms in candidate_forms(call):
            try:
                return [self._lift_with(call, way, forms)]
            except Exception as error:  # whatever the user's code raises is the reason
                self._refusal.add(_shown(call), error)
            finally:
                self._pristine.restore()
        return []

    def _lift_with(self, call: Call, way: Way, forms: Forms) -> CalledModule:
        module, is_plain = self._module, call.text in WITHOUT_STATE
        x = probe_input(self._x, 2)
        if not is_plain:
            module = self._plain(call, way, forms)
        elif way.time_axis == 0:
            x = x.transpose(0, 1)
        lifted = Lifted(module, x).eval()
        names = [name.removeprefix("" if is_plain else "module_") for name in lifted.state_names]
        states = ", ".join(names)
        given = ", ".join(f"{name}=None" for name in names)
        letter = "Y" if call.output == "Y" else "y"
        inner = parse_call(f"X, {given} -> {letter}, {states}")
        text = f"{call.text}, with its state {states} lifted out"
        inner = replace(inner, text=text)
        return probe(lifted, self._x, inner, way if is_plain else Way())

    def _plain(self, call: Call, way: Way, forms: Forms) -> nn.Module:
        layout = replace(way.layout(), forms=forms)
        called = CalledModule(self._module, call, way.time_axis, (), layout=layout)
        batch = 2
        with torch.no_grad():
            shape = called.raw(probe_input(self._x, batch), {})[0][call.output].shape
        y_time = 0 if tuple(shape[:2]) == (STEPS, batch) else 1
        layout = replace(layout, y_time=y_time)
        return Plain(CalledModule(self._module, call, way.time_axis, (), layout=layout)).eval()

    def _distinct(self, found: Sequence[Found]) -> list[Found]:
        """Those of `found` that compute something else; of these, such as run in chunks."""
        distinct: list[Found] = []
        for one in found:
            if not any(self._is_same(one, other) for other in distinct):
                distinct.append(one)
        whole = [one for one in distinct if self._is_chunkable(one)] if distinct[1:] else []
        return whole or distinct

    def _is_same(self, one: Found, other: Found) -> bool:
        shapes = [[spec.shape for spec in each.states] for each in (one, other)]
        if shapes[0] != shapes[1]:
            return False
        return all(is_close(a, b) for a, b in zip(self._run(one), self._run(other), strict=True))

    def _run(self, reference: Found) -> list[Tensor]:
        x = probe_input(self._x, 3)
        state = reference.initial(3)
        if isinstance(reference, CalledModule):
            state = random_state(reference, 3)
        with torch.no_grad():
            y, after = reference.run(x, state)
        return [y, *after.values()]

    def _is_chunkable(self, reference: Found) -> bool:
        x = probe_input(self._x, 3)
        with torch.no_grad():
            y, _ = reference.run(x, reference.initial(3))
            first, state = reference.run(x[:, :2], reference.initial(3))
            second, _ = reference.run(x[:, 2:], state)
        return is_close(torch.cat([first, second], dim=1), y)

    def _several(self, found: Sequence[Found]) -> str:
        ways = "\n".join(f'  --call "{_shown(one.call, _axis(one))}"' for one in found)
        name = type(self._module).__name__
        return f"{name} can be called in several ways; choose one:\n{ways}"


def _with_lists(call: Call) -> Call:
    """The same with lists in place of tuples: to a user they are often the same."""

    def listed(tree: Tree) -> Tree:
        if isinstance(tree, Named):
            return Named(tree.keyword, listed(tree.tree))
        if isinstance(tree, Keyed):
            return Keyed(tuple((key, listed(branch)) for key, branch in tree.entries))
        inner = tuple(map(listed, branches(tree)))
        return Listed(inner) if inner else tree

    return replace(call, arguments=tuple(map(listed, call.arguments)))


def _axis(found: Found) -> int | None:
    is_plain = isinstance(found, CalledModule) and found.call.is_sequence
    return found.time_axis if is_plain and isinstance(found, CalledModule) else None


def _shown(call: Call, axis: int | None = None) -> str:
    """The notation, with X's axes where they are known."""
    known = call.time_axis if axis is None else axis
    axes = next((words for words, number in AXES.items() if number == known), "")
    return f"{call.text}; {axes}" if axes and "lifted" not in call.text else call.text
