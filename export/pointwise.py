"""Functions that work element by element, in each language that a network is written in.

One table: what torch's trace calls them, and what they are in float64, in torch and in ONNX. A
function that is missing here is one that the affine form does not know.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F

Array = np.ndarray
aten = torch.ops.aten


@dataclass(frozen=True)
class Pointwise:
    """One function; `numpy` and `torch` take its arguments, then its constants."""

    numpy: Callable[..., Array]
    torch: Callable[..., Tensor]
    onnx: str
    arity: int = 1
    attributes: tuple[str, ...] = ()  # the constants' names in ONNX
    constant_inputs: bool = False  # ONNX takes the constants as inputs


def sigmoid(z: Array) -> Array:
    e = np.exp(-np.abs(z))  # never overflows
    return np.asarray(np.where(z >= 0, 1 / (1 + e), e / (1 + e)))


def _softplus(z: Array) -> Array:
    """torch's: above 20 it is z itself, 2e-9 off."""
    return np.asarray(np.where(z > 20, z, np.logaddexp(0, z)))


def _log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _quietly(fn: Callable[..., Array]) -> Callable[..., Array]:
    """inf is a value here, as it is in torch: exp(1e4), or 1 over it."""

    def run(*args: Array) -> Array:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            return np.asarray(fn(*args))

    return run


FUNCTIONS: dict[str, Pointwise] = {
    "sigmoid": Pointwise(sigmoid, torch.sigmoid, "Sigmoid"),
    "tanh": Pointwise(np.tanh, torch.tanh, "Tanh"),
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
    "softsign": Pointwise(lambda z: z / (1 + np.abs(z)), F.softsign, "Softsign"),
    "softmax": Pointwise(
        lambda z: np.exp(_log_softmax(z)), partial(torch.softmax, dim=-1), "Softmax"
    ),
    "log_softmax": Pointwise(_log_softmax, partial(torch.log_softmax, dim=-1), "LogSoftmax"),
}
OVER_ROW = ("softmax", "log_softmax")  # of all values of a row together, not element by element


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
    aten._softmax.default: Spelling("softmax"),
    aten._log_softmax.default: Spelling("log_softmax"),
    aten.embedding.default: Spelling("embedding"),
}  # fmt: skip


def function_of(node: fx.Node) -> tuple[str, tuple[float, ...]] | None:
    """The name of the function that a node of a trace is, and its constants; None: it is none."""
    spelling = SPELLINGS.get(node.target)
    if spelling is None:
        return None
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
