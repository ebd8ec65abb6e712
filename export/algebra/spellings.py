"""What torch's trace calls the functions of `pointwise`, and with which constants.

Several spellings may be one function: a clamp, a hardtanh and a clamp at one end are a clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import torch
from torch import fx

from export.algebra.decompositions import STANDARDIZE
from export.algebra.pointwise import FUNCTIONS
from export.errors import LoweringError

aten = torch.ops.aten


@dataclass(frozen=True)
class Spelling:
    """How torch's trace writes a function: the parameters after its arguments, in their order."""

    function: str
    constants: tuple[tuple[str, float], ...] = ()  # keyword, default
    fixed: tuple[tuple[str, float], ...] = ()  # those that must have this value


SPELLINGS: dict[object, Spelling] = {
    aten.sigmoid.default: Spelling("sigmoid"),
    aten.tanh.default: Spelling("tanh"),
    aten.relu.default: Spelling("relu"),
    aten.mul.Tensor: Spelling("mul"),
    aten.div.Tensor: Spelling("div"),
    aten.reciprocal.default: Spelling("reciprocal"),
    aten.exp.default: Spelling("exp"),
    aten.abs.default: Spelling("abs"),
    aten.clamp.default: Spelling("clip", (("min", -inf), ("max", inf))),
    aten.clamp_min.default: Spelling("clip", (("min", -inf),)),
    aten.clamp_max.default: Spelling("clip", (("max", inf),)),
    aten.hardtanh.default: Spelling("clip", (("min_val", -1.0), ("max_val", 1.0))),
    aten.leaky_relu.default: Spelling("leaky_relu", (("negative_slope", 0.01),)),
    aten.elu.default: Spelling(
        "elu", (("alpha", 1.0),), (("scale", 1.0), ("input_scale", 1.0))
    ),
    aten.threshold.default: Spelling("thresholded_relu", (("threshold", 0.0),), (("value", 0.0),)),
    aten.softplus.default: Spelling("softplus", (), (("beta", 1.0), ("threshold", 20.0))),
    aten.log.default: Spelling("log"),
    aten.sqrt.default: Spelling("sqrt"),
    aten.pow.Tensor_Scalar: Spelling("pow", (("exponent", 2.0),)),
    aten.pow.Tensor_Tensor: Spelling("power"),
    aten.maximum.default: Spelling("maximum"),
    aten.minimum.default: Spelling("minimum"),
    aten.gelu.default: Spelling("gelu"),
    aten.hardswish.default: Spelling("hardswish"),
    aten.erf.default: Spelling("erf"),
    aten.sin.default: Spelling("sin"),
    aten.cos.default: Spelling("cos"),
    aten.tan.default: Spelling("tan"),
    aten.atan.default: Spelling("atan"),
    aten.sign.default: Spelling("sign"),
    aten.floor.default: Spelling("floor"),
    aten.ceil.default: Spelling("ceil"),
    aten.round.default: Spelling("round"),
    aten.where.self: Spelling("where"),
    aten.amax.default: Spelling("amax"),
    STANDARDIZE: Spelling("standardize", (("epsilon", 1e-5),)),
    **{
        getattr(getattr(aten, name), kind): Spelling(name)
        for name in ("gt", "ge", "lt", "le", "eq", "ne")
        for kind in ("Tensor", "Scalar")
    },
    aten.logical_and.default: Spelling("mul"),
    aten.bitwise_and.Tensor: Spelling("mul"),
    aten.logical_or.default: Spelling("maximum"),
    aten.bitwise_or.Tensor: Spelling("maximum"),
    aten._softmax.default: Spelling("softmax"),
    aten._log_softmax.default: Spelling("log_softmax"),
    aten.embedding.default: Spelling("embedding"),
}  # fmt: skip


def function_of(node: fx.Node) -> tuple[str, tuple[float, ...]] | None:
    """The name of the function that a node of a trace is, and its constants; None: it is none.

    The sizes (outer, n, inner) of a function over an axis are not among them: see `groups`.
    """
    spelling = SPELLINGS.get(node.target)
    if spelling is None:
        return None
    if node.target is aten.gelu.default:
        return ("gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu"), ()
    known = FUNCTIONS.get(spelling.function)
    given = list(node.args[known.arity if known else 1 :])
    names = [name for name, _ in (*spelling.constants, *spelling.fixed)]
    found = {**dict(zip(names, given, strict=False)), **node.kwargs}

    def number(name: str, default: float) -> float:
        value = found.get(name)
        return float(default if value is None else value)  # type: ignore[arg-type]

    if any(number(name, value) != value for name, value in spelling.fixed):
        return None
    constants = tuple(number(name, default) for name, default in spelling.constants)
    if spelling.function == "clip" and len(constants) == 1:
        one_sided = {"min": (*constants, inf), "max": (-inf, *constants)}
        constants = one_sided[spelling.constants[0][0]]
    return spelling.function, constants


def groups(node: fx.Node, shape: Sequence[int], batch: int) -> tuple[int, int, int]:
    """How a function over an axis sees a row of its argument, of `shape`: (outer, n, inner).

    Raises:
        LoweringError: the axes are not next to each other, or the batch is among them.
    """
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if node.target is STANDARDIZE:
        given = -1
    axes = [given] if isinstance(given, int) else list(given or range(len(shape)))
    found = sorted(int(axis) % len(shape) for axis in axes)
    if found != list(range(found[0], found[-1] + 1)) or any(shape[a] == batch for a in found):
        raise LoweringError(
            f"`{node.target}` over the axes {found} of values of shape {tuple(shape)}, in which "
            f"{batch} is the batch, is not over neighbouring axes of each row"
        )
    rows = [1 if n == batch else n for n in shape]
    first, after = found[0], found[-1] + 1
    return prod(rows[:first]), prod(rows[first:after]), prod(rows[after:])
