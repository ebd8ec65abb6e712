"""The recurrent cells that have an operator of their own: LSTM, GRU and the plain RNN.

Each says its equations once (`step`), over any `Arithmetic`: in float64 they are the proof, in ONNX
the step graph, in torch the TorchScript. All matrices are float64.

Sources: LSTM: Hochreiter & Schmidhuber 1997, forget gate from Gers, Schmidhuber & Cummins 2000,
peepholes from Gers & Schmidhuber 2000. GRU: Cho et al. 2014; with the reset after the product, as
cuDNN and torch have it. RNN: Elman 1990.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Generic, TypeVar

import numpy as np

from export.algebra.affine import Affine

Array = np.ndarray
Value = TypeVar("Value")


@dataclass(frozen=True)
class StateSlice:
    """`port.reshape(B, -1)[:, start:stop]`."""

    port: str
    start: int
    stop: int


@dataclass(frozen=True)
class Activation:
    """scale * function(z); "linear" is z itself."""

    function: str
    constants: tuple[float, ...] = ()
    scale: float = 1.0

    @property
    def bounded(self) -> bool:
        """Whether its values lie in [-1, 1]."""
        return self in (SIGMOID, HARD_SIGMOID, Activation("softsign")) or (
            self.function == "tanh" and abs(self.scale) <= 1
        )

    def __str__(self) -> str:
        name = "hard sigmoid" if self == HARD_SIGMOID else self.function.replace("_", " ")
        numbers = "" if self == HARD_SIGMOID else "".join(f" {c:g}" for c in self.constants)
        return f"{name}{numbers}" if self.scale == 1 else f"{self.scale:g} {name}{numbers}"


SIGMOID, TANH, LINEAR = Activation("sigmoid"), Activation("tanh"), Activation("linear")
HARD_SIGMOID = Activation("clip", (0.0, 1.0))  # its slope and offset are in the weights


Run = tuple[Activation, int]  # gates side by side that share an activation


def runs_of(activations: Sequence[Activation]) -> list[Run]:
    return [(activation, len(list(same))) for activation, same in groupby(activations)]


class Arithmetic(ABC, Generic[Value]):
    """The operations that a cell's equations need, on values (B, n)."""

    @abstractmethod
    def affine(self, cell: "Cell", part: str, own: Mapping[str, Value]) -> Value:
        """The affine map `cell.parts[part]` of what was computed before, and of `own` values."""

    @abstractmethod
    def split(self, value: Value, sizes: Sequence[int]) -> Sequence[Value]: ...

    @abstractmethod
    def apply(self, function: str, *arguments: Value, constants: Sequence[float] = ()) -> Value:
        """A function of `pointwise.FUNCTIONS`."""

    @abstractmethod
    def add(self, a: Value, b: Value) -> Value: ...

    @abstractmethod
    def subtract(self, a: Value, b: Value) -> Value: ...

    @abstractmethod
    def weigh(self, value: Value, weights: Array) -> Value:
        """value (B, n) * weights (n,) or a number."""

    def multiply(self, a: Value, b: Value) -> Value:
        return self.apply("mul", a, b)

    def gates(
        self,
        cell: "Cell",
        part: str,
        own: Mapping[str, Value],
        activations: Sequence[Activation],
    ) -> list[Value]:
        """The affine map `part` as pieces of hidden size, each under its activation."""
        runs = runs_of(activations)
        z = self.affine(cell, part, own)
        sizes = [count * cell.hidden_size for _, count in runs]
        return self.activate_runs(runs, [z] if len(runs) == 1 else self.split(z, sizes), cell)

    def activate_runs(
        self, runs: Sequence["Run"], pieces: Sequence[Value], cell: "Cell"
    ) -> list[Value]:
        """The gates in `pieces`, one of each run."""
        found: list[Value] = []
        for (activation, count), piece in zip(runs, pieces, strict=True):
            value = self.activate(activation, piece)
            found += [value] if count == 1 else self.split(value, (cell.hidden_size,) * count)
        return found

    def activate(self, activation: Activation, z: Value) -> Value:
        if activation.function != "linear":
            z = self.apply(activation.function, z, constants=activation.constants)
        return z if activation.scale == 1 else self.weigh(z, np.array(activation.scale))


@dataclass(frozen=True)
class Cell(ABC):
    """One recurrent layer: its gates look at `input` (sources @ W.T + b) and at its own h."""

    name: str
    input: Affine  # (gates * H)
    recurrent: Array  # R (gates * H, H)
    h: StateSlice

    @property
    def hidden_size(self) -> int:
        return int(self.recurrent.shape[1])

    @property
    def slices(self) -> dict[str, StateSlice]:
        """Where its state lies: the sources "NAME.h" (and "NAME.c") after the step."""
        return {"h": self.h}

    def old(self, state: Mapping[str, Array]) -> dict[str, Array]:
        """Its own h (and c) of flat states, name -> (B, n)."""
        return {k: state[s.port][:, s.start : s.stop] for k, s in self.slices.items()}

    @property
    def own_h(self) -> str:
        """The source name of its h from before the step, in `parts`."""
        return f"{self.name} own h"

    @property
    def own(self) -> frozenset[str]:
        """The sources in `parts` that its recurrent matrix is multiplied by."""
        return frozenset({self.own_h})

    @property
    @abstractmethod
    def kind(self) -> str:
        """lstm, gru or rnn."""

    @property
    @abstractmethod
    def road(self) -> str:
        """What it is, as the report says it."""

    @property
    @abstractmethod
    def bounded(self) -> frozenset[str]:
        """Those of its sources and own values that lie in [-1, 1] whatever the input."""

    @cached_property
    @abstractmethod
    def parts(self) -> dict[str, Affine]:
        """The affine maps in its equations."""

    @abstractmethod
    def step(self, a: Arithmetic[Value], old: Mapping[str, Value]) -> dict[str, Value]:
        """The new h (and c) from the old."""

    def _looking(self, rows: slice) -> Affine:
        """Rows of the gates: what they take of the sources, and of h."""
        inside = _rows(self.input, rows)
        return Affine({**inside.blocks, self.own_h: self.recurrent[rows]}, inside.bias)


@dataclass(frozen=True)
class LstmCell(Cell):
    """Gates stacked in the order i, f, g, o; `peepholes` (3, H) of i, f, o."""

    c: StateSlice
    peepholes: Array | None = None
    gate: Activation = SIGMOID
    candidate: Activation = TANH
    output: Activation = TANH

    @property
    def slices(self) -> dict[str, StateSlice]:
        return {"h": self.h, "c": self.c}

    @property
    def activations(self) -> tuple[Activation, ...]:
        return self.gate, self.candidate, self.output

    @property
    def is_plain(self) -> bool:
        """Whether torch's own LSTM computes it."""
        return self.peepholes is None and self.activations == (SIGMOID, TANH, TANH)

    @property
    def is_coupled(self) -> bool:
        """Whether i = 1 - f: the rows of one are those of the other, negated."""
        size = self.hidden_size
        shift = 1.0 if self.gate == HARD_SIGMOID else 0.0
        rows = [*self.input.blocks.values(), self.recurrent]
        rows += [self.peepholes] if self.peepholes is not None else []
        ends = [
            (m[0], m[1]) if m is self.peepholes else (m[:size], m[size : 2 * size]) for m in rows
        ]
        ends.append((self.input.bias[:size] - shift, self.input.bias[size : 2 * size]))
        return all(np.allclose(i, -f, rtol=1e-12, atol=1e-12) for i, f in ends)

    @property
    def kind(self) -> str:
        return "lstm"

    @property
    def road(self) -> str:
        kinds = ["peepholes"] if self.peepholes is not None else []
        kinds += ["coupled i = 1 - f"] if self.is_coupled else []
        if self.activations != (SIGMOID, TANH, TANH):
            kinds.append("f {}, g {}, h {}".format(*self.activations))
        return f"lstm ({'; '.join(kinds)})" if kinds else "lstm"

    @property
    def bounded(self) -> frozenset[str]:
        c = self.is_coupled and self.candidate.bounded  # then c' is a mean of c and g
        h = self.output.bounded or (self.output == LINEAR and c)
        found = {f"{self.name}.c"} if c else set()
        return frozenset(found | ({f"{self.name}.h", self.own_h} if h else set()))

    @cached_property
    def parts(self) -> dict[str, Affine]:
        i, f, g, o = np.split(np.arange(4 * self.hidden_size), 4)
        return {"gates": _rows(self._looking(slice(None)), np.concatenate([i, f, o, g]))}

    def step(self, a: Arithmetic[Value], old: Mapping[str, Value]) -> dict[str, Value]:
        c, own = old["c"], {self.own_h: old["h"]}
        if self.peepholes is None:
            i, f, o, g = a.gates(self, "gates", own, (self.gate,) * 3 + (self.candidate,))
            c = a.add(a.multiply(f, c), a.multiply(i, g))
        else:
            z_i, z_f, z_o, z_g = a.gates(self, "gates", own, (LINEAR,) * 4)
            i = a.activate(self.gate, a.add(z_i, a.weigh(c, self.peepholes[0])))
            f = a.activate(self.gate, a.add(z_f, a.weigh(c, self.peepholes[1])))
            c = a.add(a.multiply(f, c), a.multiply(i, a.activate(self.candidate, z_g)))
            o = a.activate(self.gate, a.add(z_o, a.weigh(c, self.peepholes[2])))
        return {"h": a.multiply(o, a.activate(self.output, c)), "c": c}


@dataclass(frozen=True)
class GruCell(Cell):
    """Gates stacked in the order z, r, n; h' = (1 - z) * n + z * h.

    The reset stands before the product, n = tanh(W x + R (r * h) + b), or after it,
    n = tanh(W x + b + r * (R h + reset_bias)).
    """

    reset_bias: Array | None = None  # (H,); None: the reset stands before the product
    gate: Activation = SIGMOID
    candidate: Activation = TANH

    @property
    def own_reset(self) -> str:
        return f"{self.name} own r * h"

    @property
    def own(self) -> frozenset[str]:
        return frozenset({self.own_h, self.own_reset})

    @property
    def is_plain(self) -> bool:
        """Whether torch's own GRU computes it."""
        return self.reset_bias is not None and self.activations == (SIGMOID, TANH)

    @property
    def activations(self) -> tuple[Activation, ...]:
        return self.gate, self.candidate

    @property
    def kind(self) -> str:
        return "gru"

    @property
    def road(self) -> str:
        where = "before" if self.reset_bias is None else "after"
        named = "" if self.activations == (SIGMOID, TANH) else "; f {}, g {}"
        return f"gru (reset {where} the product{named.format(*self.activations)})"

    @property
    def bounded(self) -> frozenset[str]:
        own = {f"{self.name}.h", self.own_h, self.own_reset}
        return frozenset(own if self.candidate.bounded else ())

    @cached_property
    def parts(self) -> dict[str, Affine]:
        size = self.hidden_size
        candidate, product = _rows(self.input, slice(2 * size, None)), self.recurrent[2 * size :]
        gates = {"gates": self._looking(slice(2 * size))}
        if self.reset_bias is None:
            blocks = {**candidate.blocks, self.own_reset: product}
            return gates | {"candidate": Affine(blocks, candidate.bias)}
        reset = Affine({self.own_h: product}, self.reset_bias)
        return gates | {"candidate": candidate, "reset": reset}

    def step(self, a: Arithmetic[Value], old: Mapping[str, Value]) -> dict[str, Value]:
        h = old["h"]
        z, r = a.gates(self, "gates", {self.own_h: h}, (self.gate,) * 2)
        if self.reset_bias is None:
            n = a.affine(self, "candidate", {self.own_reset: a.multiply(r, h)})
        else:
            reset = a.multiply(r, a.affine(self, "reset", {self.own_h: h}))
            n = a.add(reset, a.affine(self, "candidate", {}))
        n = a.activate(self.candidate, n)
        return {"h": a.add(n, a.multiply(z, a.subtract(h, n)))}


@dataclass(frozen=True)
class RnnCell(Cell):
    """h' = activation(W x + R h + b)."""

    activation: Activation = TANH

    @property
    def kind(self) -> str:
        return "rnn"

    @property
    def road(self) -> str:
        return f"rnn ({self.activation})"

    @property
    def bounded(self) -> frozenset[str]:
        return frozenset({f"{self.name}.h", self.own_h} if self.activation.bounded else ())

    @cached_property
    def parts(self) -> dict[str, Affine]:
        return {"candidate": self._looking(slice(None))}

    def step(self, a: Arithmetic[Value], old: Mapping[str, Value]) -> dict[str, Value]:
        z = a.affine(self, "candidate", {self.own_h: old["h"]})
        return {"h": a.activate(self.activation, z)}


def _rows(affine: Affine, rows: slice | Array) -> Affine:
    return Affine({s: m[rows] for s, m in affine.blocks.items()}, affine.bias[rows])
