"""What an atom of a form is as an activation: which function, of which affine value.

Gates lie in [0, 1]: a sigmoid or a hard sigmoid, however it is spelled, or 1 minus it, which is the
same function of the negated value. So neither `i = 1 - f` nor whose share z is needs a case.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from export.algebra.affine import SAME, Affine, equal, rows_of, scaled
from export.algebra.cells import HARD_SIGMOID, SIGMOID, Activation
from export.algebra.form import Form, Root
from export.algebra.polynomial import Pick, Polynomial, Unit, atoms, quotient

Array = np.ndarray
TAKEN = {  # by ONNX's recurrent operators; the hard sigmoid aside
    "sigmoid", "tanh", "relu", "leaky_relu", "elu", "thresholded_relu", "softplus", "softsign",
    "linear",
}  # fmt: skip
HOMOGENEOUS = ("relu", "leaky_relu", "linear")  # a * f(z) = f(a * z) for a > 0
ODD = ("tanh", "softsign", "linear")  # -f(z) = f(-z)


@dataclass(frozen=True)
class Activated:
    """activation(argument)."""

    activation: Activation
    argument: Affine


class Activations:
    """Reads the atoms of one form."""

    def __init__(self, form: Form) -> None:
        self._form = form

    def read(self, unit: Unit) -> Activated | None:
        """offset + slope * atom as one activation; None: no operator takes it."""
        function, constants, argument = self._function(unit.atom)
        offset, slope = unit.offset, unit.slope
        if function == "clip":
            low, high = constants
            if not np.isfinite(constants).all():
                return None
            return self._clipped(offset + slope * low, slope * (high - low), low, high, argument)
        if function not in TAKEN:
            return None
        if function == "sigmoid" and abs(offset + slope / 2) <= SAME:  # a tanh: 2 s(2 z) - 1
            function, offset, slope, argument = "tanh", 0.0, slope / 2, scaled(argument, 0.5)
        elif function == "tanh" and _near(offset, 0.5) and _near(abs(slope), 0.5):
            argument = scaled(argument, 2 * np.sign(slope))
            return Activated(SIGMOID, argument)
        if function == "sigmoid" and _near(offset, 1) and _near(slope, -1):
            return Activated(SIGMOID, scaled(argument, -1))
        if abs(offset) > SAME and function != "linear":
            return None
        if slope < 0 and function in ODD:
            slope, argument = -slope, scaled(argument, -1)
        if slope > 0 and function in HOMOGENEOUS:
            slope, argument = 1.0, scaled(argument, slope)
            if function == "linear":
                argument = Affine(argument.blocks, argument.bias + offset)
        if _near(slope, 1):
            return Activated(Activation(function, constants), argument)
        if function == "tanh":
            return Activated(Activation("tanh", scale=slope), argument)
        return None

    def gates_of(self, polynomial: Polynomial) -> Iterator[tuple[Unit, Polynomial]]:
        """The ways to see a value as a gate times something."""
        for atom in atoms(polynomial):
            for gate in self._gates(atom):
                found = quotient(polynomial, gate)
                if found is not None:
                    yield gate, found

    def is_gate(self, unit: Unit) -> bool:
        return any(
            _near(unit.offset, gate.offset) and _near(unit.slope, gate.slope)
            for gate in self._gates(unit.atom)
        )

    def _gates(self, atom: Pick) -> list[Unit]:
        """Those values in [0, 1] that an atom makes: g and 1 - g."""
        function, constants, _ = self._function(atom)
        if function == "sigmoid":
            return [Unit(0.0, 1.0, atom), Unit(1.0, -1.0, atom)]
        if function == "tanh":
            return [Unit(0.5, 0.5, atom), Unit(0.5, -0.5, atom)]
        if function == "clip" and np.isfinite(constants).all():
            low, high = constants
            width = high - low
            return [Unit(-low / width, 1 / width, atom), Unit(high / width, -1 / width, atom)]
        return []

    def _clipped(
        self, least: float, width: float, low: float, high: float, argument: Affine
    ) -> Activated | None:
        """least + width * (clip(argument, low, high) - low) / (high - low)."""
        unit = scaled(Affine(argument.blocks, argument.bias - low), 1 / (high - low))
        if _near(least, 0) and _near(width, 1):
            return Activated(HARD_SIGMOID, unit)
        if _near(least, 1) and _near(width, -1):
            flipped = scaled(unit, -1)
            return Activated(HARD_SIGMOID, Affine(flipped.blocks, flipped.bias + 1))
        return None

    def _function(self, atom: Pick) -> tuple[str, tuple[float, ...], Affine]:
        """An atom's function, its constants and its argument at the atom's elements."""
        name, slash, k = atom.root.partition("/")
        root = self._form.roots[name]
        index = np.array(atom.index)
        if slash:
            return "linear", (), rows_of(root.args[int(k)], index)
        if root.fn in ("input", "embedding"):
            picked = np.zeros((len(index), root.size))
            picked[np.arange(len(index)), index] = 1.0
            return "linear", (), Affine({name: picked}, np.zeros(len(index)))
        argument = rows_of(root.args[0], index)
        if root.fn == "clip" and root.constants == (0.0, np.inf):
            return "relu", (), argument
        if root.fn == "div" and self._is_softsign(root, index):
            return "softsign", (), argument
        if root.fn == "reciprocal":
            exponent = self._inside(argument, "exp")  # 1 / (1 + e^-z)
            if exponent is not None:
                return "sigmoid", (), scaled(exponent, -1)
        return root.fn, root.constants, argument

    def _is_softsign(self, root: Root, index: Array) -> bool:
        """Whether a quotient is z / (1 + |z|)."""
        top, bottom = (rows_of(arg, index) for arg in root.args)
        inside = self._inside(bottom, "abs")
        return inside is not None and equal(inside, top)

    def _inside(self, affine: Affine, function: str) -> Affine | None:
        """z, if `affine` is 1 + function(z) element by element."""
        if len(affine.blocks) != 1 or not np.allclose(affine.bias, 1, rtol=0, atol=SAME):
            return None
        ((name, matrix),) = affine.blocks.items()
        root = self._form.roots[name]
        index = np.abs(matrix).argmax(axis=1)
        picked = np.zeros_like(matrix)
        picked[np.arange(len(matrix)), index] = 1.0
        if root.fn != function or not np.allclose(matrix, picked, rtol=0, atol=SAME):
            return None
        return rows_of(root.args[0], index)


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= SAME
