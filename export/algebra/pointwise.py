"""Functions that work element by element, in each language that a network is written in.

One table: what they are in float64, in torch and in ONNX; `spellings` has what torch's trace calls
them. A function that is missing here, and from `decompositions`, is one that the affine form does
not know.

Some work over an axis instead (`OVER_AXIS`): on flat values, seen as (B, outer, n, inner), over n.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

Array = np.ndarray
aten = torch.ops.aten


class Graph(Protocol):
    """What a function of several ONNX operators is written with."""

    def one(self, op: str, *inputs: str, hint: str = "", **attributes: Any) -> str: ...

    def constant(self, value: Array, hint: str) -> str: ...

    def ints(self, *values: int) -> str: ...


Writer = Callable[[Graph, Sequence[str], Sequence[float]], str]  # arguments, constants -> value


@dataclass(frozen=True)
class Pointwise:
    """One function; `numpy` and `torch` take its arguments, then its constants."""

    numpy: Callable[..., Array]
    torch: Callable[..., Tensor]
    onnx: str | Writer
    arity: int = 1
    bounded: bool = False  # in [-1, 1] whatever its arguments are
    attributes: tuple[str, ...] = ()  # the constants' names in ONNX
    constant_inputs: bool = False  # ONNX takes the constants as inputs


def sigmoid(z: Array) -> Array:
    e = np.exp(-np.abs(z))  # never overflows
    return np.asarray(np.where(z >= 0, 1 / (1 + e), e / (1 + e)))


def _softplus(z: Array) -> Array:
    """torch's: above 20 it is z itself, 2e-9 off."""
    return np.asarray(np.where(z > 20, z, np.logaddexp(0, z)))


def _quietly(fn: Callable[..., Array]) -> Callable[..., Array]:
    """inf is a value here, as it is in torch: exp(1e4), or 1 over it."""

    def run(*args: Array) -> Array:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            return np.asarray(fn(*args))

    return run


def _erf(z: Array) -> Array:
    return np.asarray(torch.erf(torch.from_numpy(z)).numpy())  # numpy has none


def _gelu_tanh(z: Array) -> Array:
    return np.asarray(0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))))


def _compared(
    numpy: Callable[..., Array], torch: Callable[..., Tensor], onnx: str, negated: bool = False
) -> Pointwise:
    """A comparison as a number: 1 where it holds, else 0."""

    def write(g: Graph, arguments: Sequence[str], constants: Sequence[float]) -> str:
        holds = g.one(onnx, *arguments)
        return g.one("Cast", g.one("Not", holds) if negated else holds, to=TensorProto.FLOAT)

    return Pointwise(
        lambda a, b: np.asarray(numpy(a, b), np.float64),
        lambda a, b: torch(a, b).to(a.dtype),
        write,
        arity=2,
        bounded=True,
    )


def _write_where(g: Graph, arguments: Sequence[str], constants: Sequence[float]) -> str:
    condition, a, b = arguments
    return g.one("Where", g.one("Cast", condition, to=TensorProto.BOOL), a, b)


def _grouped(shape: Sequence[float]) -> tuple[int, int, int]:
    outer, n, inner = (int(size) for size in shape)
    return outer, n, inner


def _over_axis(
    numpy: Callable[..., Array], torch: Callable[..., Tensor], onnx: Writer, bounded: bool = False
) -> Pointwise:
    """A function over n of values (B, outer, n, inner); the sizes come before other constants.

    `numpy` and `torch` are given the axis -2, `onnx` values of which n is the axis -2.
    """

    def in_numpy(z: Array, *constants: float) -> Array:
        grouped = z.reshape(len(z), *_grouped(constants[:3]))
        return np.asarray(_quietly(numpy)(grouped, *constants[3:])).reshape(len(z), -1)

    def in_torch(z: Tensor, *constants: float) -> Tensor:
        y = torch(z.reshape(*z.shape[:-1], *_grouped(constants[:3])), *constants[3:])
        return y.flatten(z.ndim - 1)

    def write(g: Graph, arguments: Sequence[str], constants: Sequence[float]) -> str:
        (z,) = arguments
        leading = g.one("Shape", z, end=-1)
        shape = g.one("Concat", leading, g.ints(*_grouped(constants[:3])), axis=0)
        y = onnx(g, [g.one("Reshape", z, shape)], constants)
        return g.one("Reshape", y, g.one("Concat", leading, g.ints(-1), axis=0))

    return Pointwise(in_numpy, in_torch, write, bounded=bounded)


def _log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=-2, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-2, keepdims=True)))


def _standardize(z: Array, epsilon: float) -> Array:
    away = z - z.mean(axis=-2, keepdims=True)
    return np.asarray(away / np.sqrt((away * away).mean(axis=-2, keepdims=True) + epsilon))


def _standardize_in_torch(z: Tensor, epsilon: float) -> Tensor:
    last = z.transpose(-1, -2)
    return F.layer_norm(last, last.shape[-1:], eps=epsilon).transpose(-1, -2)


def _write_standardize(g: Graph, arguments: Sequence[str], constants: Sequence[float]) -> str:
    n, inner = int(constants[1]), int(constants[2])
    one = g.constant(np.ones((n, inner), np.float32), "one")
    return g.one("LayerNormalization", *arguments, one, axis=-2, epsilon=constants[3])


FUNCTIONS: dict[str, Pointwise] = {
    "sigmoid": Pointwise(sigmoid, torch.sigmoid, "Sigmoid", bounded=True),
    "tanh": Pointwise(np.tanh, torch.tanh, "Tanh", bounded=True),
    "relu": Pointwise(lambda z: np.maximum(z, 0), torch.relu, "Relu"),
    "mul": Pointwise(_quietly(np.multiply), torch.mul, "Mul", arity=2),
    "div": Pointwise(_quietly(np.divide), torch.div, "Div", arity=2),
    "reciprocal": Pointwise(_quietly(np.reciprocal), torch.reciprocal, "Reciprocal"),
    "exp": Pointwise(_quietly(np.exp), torch.exp, "Exp"),
    "abs": Pointwise(np.abs, torch.abs, "Abs"),
    "clip": Pointwise(np.clip, torch.clamp, "Clip", constant_inputs=True),
    "leaky_relu": Pointwise(
        lambda z, a: np.where(z >= 0, z, a * z), F.leaky_relu, "LeakyRelu", attributes=("alpha",)
    ),
    "elu": Pointwise(
        lambda z, a: np.where(z >= 0, z, a * np.expm1(np.minimum(z, 0))),
        F.elu,
        "Elu",
        attributes=("alpha",),
    ),
    "thresholded_relu": Pointwise(
        lambda z, a: np.where(z > a, z, 0),
        lambda z, a: F.threshold(z, a, 0.0),
        "ThresholdedRelu",
        attributes=("alpha",),
    ),
    "softplus": Pointwise(_softplus, F.softplus, "Softplus"),
    "softsign": Pointwise(lambda z: z / (1 + np.abs(z)), F.softsign, "Softsign", bounded=True),
    "log": Pointwise(_quietly(np.log), torch.log, "Log"),
    "sqrt": Pointwise(_quietly(np.sqrt), torch.sqrt, "Sqrt"),
    "pow": Pointwise(_quietly(np.power), torch.pow, "Pow", constant_inputs=True),
    "power": Pointwise(_quietly(np.power), torch.pow, "Pow", arity=2),
    "maximum": Pointwise(np.maximum, torch.maximum, "Max", arity=2),
    "minimum": Pointwise(np.minimum, torch.minimum, "Min", arity=2),
    "gelu": Pointwise(lambda z: 0.5 * z * (1 + _erf(z / np.sqrt(2))), F.gelu, "Gelu"),
    "gelu_tanh": Pointwise(
        _quietly(_gelu_tanh),
        lambda z: F.gelu(z, approximate="tanh"),
        lambda g, arguments, _: g.one("Gelu", *arguments, approximate="tanh"),
    ),
    "hardswish": Pointwise(lambda z: z * np.clip(z / 6 + 0.5, 0, 1), F.hardswish, "HardSwish"),
    "erf": Pointwise(_erf, torch.erf, "Erf", bounded=True),
    "sin": Pointwise(np.sin, torch.sin, "Sin", bounded=True),
    "cos": Pointwise(np.cos, torch.cos, "Cos", bounded=True),
    "tan": Pointwise(np.tan, torch.tan, "Tan"),
    "atan": Pointwise(np.arctan, torch.atan, "Atan"),
    "sign": Pointwise(np.sign, torch.sign, "Sign", bounded=True),
    "floor": Pointwise(np.floor, torch.floor, "Floor"),
    "ceil": Pointwise(np.ceil, torch.ceil, "Ceil"),
    "round": Pointwise(np.rint, torch.round, "Round"),
    "gt": _compared(np.greater, torch.gt, "Greater"),
    "ge": _compared(np.greater_equal, torch.ge, "GreaterOrEqual"),
    "lt": _compared(np.less, torch.lt, "Less"),
    "le": _compared(np.less_equal, torch.le, "LessOrEqual"),
    "eq": _compared(np.equal, torch.eq, "Equal"),
    "ne": _compared(np.not_equal, torch.ne, "Equal", negated=True),
    "where": Pointwise(
        lambda condition, a, b: np.asarray(np.where(condition != 0, a, b)),
        lambda condition, a, b: torch.where(condition != 0, a, b),
        _write_where,
        arity=3,
    ),
    "softmax": _over_axis(
        lambda z: np.exp(_log_softmax(z)),
        lambda z: torch.softmax(z, -2),
        lambda g, z, _: g.one("Softmax", *z, axis=-2),
        bounded=True,
    ),
    "log_softmax": _over_axis(
        _log_softmax,
        lambda z: torch.log_softmax(z, -2),
        lambda g, z, _: g.one("LogSoftmax", *z, axis=-2),
    ),
    "amax": _over_axis(
        lambda z: z.max(axis=-2),
        lambda z: torch.amax(z, -2),
        lambda g, z, _: g.one("ReduceMax", *z, g.ints(-2), keepdims=0),
    ),
    "standardize": _over_axis(_standardize, _standardize_in_torch, _write_standardize),
}
OVER_AXIS = ("softmax", "log_softmax", "amax", "standardize")
