"""Values as polynomials in elements of roots: what multiplies what, whatever order spells it.

`(1 - z) * n + z * h`, `n + z * (h - n)` and `h + (1 - z) * (n - h)` are three affine forms, and one
polynomial: n - z n + z h. So a cell is recognised by its polynomial.

An atom is a vector of elements of one root that is no product; a monomial is atoms multiplied
element by element. A factor that mixes elements (W x) is an atom of its own, kept as it is.
"""

from dataclasses import dataclass

import numpy as np

from export.algebra.affine import SAME, Affine
from export.algebra.form import Form

Array = np.ndarray
MAX_TERMS = 12  # a cell's h' has 6 at most


@dataclass(frozen=True, order=True)
class Pick:
    """value[j] = root[index[j]]; a root "NAME/k" is the k-th argument of NAME as it is."""

    root: str
    index: tuple[int, ...]


Polynomial = dict[tuple[Pick, ...], float]  # the sum of coefficient * atoms, each monomial sorted


class Expander:
    """Expands affine values of a form."""

    def __init__(self, form: Form) -> None:
        self._form = form

    def expand(self, affine: Affine, rows: Array) -> Polynomial | None:
        """`affine` at `rows`; None: it is no polynomial in single elements of each root."""
        bias = affine.bias[rows]
        if not _equal(bias):
            return None
        found: Polynomial = {(): float(bias[0])}
        for root, matrix in affine.blocks.items():
            part = matrix[rows]
            if not part.any():
                continue
            index = np.abs(part).argmax(axis=1)
            picked = part[np.arange(len(rows)), index]
            if (np.count_nonzero(part, axis=1) != 1).any() or not _equal(picked):
                return None
            atom = self.atom(Pick(root, tuple(index.tolist())))
            found = add(found, multiply({(): float(picked[0])}, atom))
        found = _clean(found)
        return found if len(found) <= MAX_TERMS else None

    def atom(self, pick: Pick) -> Polynomial:
        """Elements of a root: the product of its arguments if it is one, else an atom."""
        root = self._form.roots[pick.root]
        if root.fn != "mul":
            return {(pick,): 1.0}
        product: Polynomial = {(): 1.0}
        for k, arg in enumerate(root.args):
            factor = self.expand(arg, np.array(pick.index))
            if factor is None:
                factor = {(Pick(f"{root.name}/{k}", pick.index),): 1.0}
            product = multiply(product, factor)
        return product if len(product) <= MAX_TERMS else {(pick,): 1.0}


def add(a: Polynomial, b: Polynomial) -> Polynomial:
    return _clean({key: a.get(key, 0.0) + b.get(key, 0.0) for key in {**a, **b}})


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    found: Polynomial = {}
    for left, x in a.items():
        for right, y in b.items():
            key = tuple(sorted((*left, *right)))
            found[key] = found.get(key, 0.0) + x * y
    return _clean(found)


def same(a: Polynomial, b: Polynomial) -> bool:
    return all(abs(a.get(key, 0.0) - b.get(key, 0.0)) <= SAME for key in {**a, **b})


def atoms(polynomial: Polynomial) -> list[Pick]:
    return sorted({atom for monomial in polynomial for atom in monomial})


def split_by(polynomial: Polynomial, atom: Pick) -> tuple[Polynomial, Polynomial] | None:
    """(rest, factor) of rest + atom * factor; None: the atom is there squared."""
    rest: Polynomial = {}
    factor: Polynomial = {}
    for monomial, coefficient in polynomial.items():
        if monomial.count(atom) > 1:
            return None
        if atom in monomial:
            factor[tuple(a for a in monomial if a != atom)] = coefficient
        else:
            rest[monomial] = coefficient
    return rest, factor


@dataclass(frozen=True)
class Unit:
    """offset + slope * atom."""

    offset: float
    slope: float
    atom: Pick


def as_unit(polynomial: Polynomial) -> Unit | None:
    """A polynomial of one atom, once."""
    found = atoms(polynomial)
    if len(found) != 1 or set(polynomial) - {(), (found[0],)}:
        return None
    return Unit(polynomial.get((), 0.0), polynomial[found[0],], found[0])


def quotient(polynomial: Polynomial, unit: Unit) -> Polynomial | None:
    """Q if polynomial = unit * Q and Q has not the unit's atom, else None."""
    parts = split_by(polynomial, unit.atom)
    if parts is None:
        return None
    rest, factor = parts
    found = multiply({(): 1 / unit.slope}, factor)
    return found if found and same(rest, multiply({(): unit.offset}, found)) else None


def _equal(values: Array) -> bool:
    return bool((np.abs(values - values[0]) <= SAME * max(1.0, abs(float(values[0])))).all())


def _clean(polynomial: Polynomial) -> Polynomial:
    return {key: value for key, value in polynomial.items() if abs(value) > SAME}
