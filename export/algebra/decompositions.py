"""Operations that only abbreviate others, written out, so that the affine form sees through them.

torch has decompositions of its own; these here end in what `pointwise` knows, are affine wherever
they can be (a norm's weight joins the product that follows), and never branch on a value. Which is
why a norm ends in `standardize`, an operation that torch does not have alone.
"""

from collections.abc import Callable, Sequence
from math import log, prod

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017


@torch.library.custom_op("carousel::standardize", mutates_args=())
def standardize(z: Tensor, epsilon: float) -> Tensor:
    """(z - mean) / sqrt(variance + epsilon) over the last axis, the variance biased."""
    return F.layer_norm(z, z.shape[-1:], eps=epsilon)


@standardize.register_fake
def _(z: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(z)


STANDARDIZE = torch.ops.carousel.standardize.default


def _layer_norm(
    z: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, epsilon: float
) -> tuple[Tensor, None, None]:
    leading = z.shape[: z.ndim - len(shape)]
    y = standardize(z.reshape(*leading, prod(shape)), epsilon).reshape(z.shape)
    return _scaled(y, weight, bias), None, None


def _group_norm(
    z: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rows: int,
    channels: int,
    inner: int,
    groups: int,
    epsilon: float,
) -> tuple[Tensor, None, None]:
    y = standardize(z.reshape(rows, groups, channels // groups * inner), epsilon).reshape(z.shape)
    axes = [1] * (z.ndim - 2)
    weight, bias = (p if p is None else p.reshape(-1, *axes) for p in (weight, bias))
    return _scaled(y, weight, bias), None, None


def _rms_norm(
    z: Tensor, shape: Sequence[int], weight: Tensor | None, epsilon: float | None
) -> tuple[Tensor, None]:
    axes = list(range(z.ndim - len(shape), z.ndim))
    small = torch.finfo(z.dtype).eps if epsilon is None else epsilon
    y = z * torch.reciprocal(torch.sqrt((z * z).mean(axes, keepdim=True) + small))
    return _scaled(y, weight, None), None


def _scaled(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _var(
    z: Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Tensor:
    axes = list(range(z.ndim)) if not dim else list(dim)
    count = prod(z.shape[axis] for axis in axes)
    away = z - z.mean(axes, keepdim=True)
    total = (away * away).sum(axes, keepdim=keepdim)
    return total / max(0.0, count - (1 if correction is None else correction))


def _std(*args: object, **kwargs: object) -> Tensor:
    return torch.sqrt(_var(*args, **kwargs))  # type: ignore[arg-type]


def _logsumexp(z: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
    peak = torch.amax(z, dim, keepdim=True)
    total = torch.log(torch.exp(z - peak).sum(dim, keepdim=True)) + peak
    return total if keepdim else total.squeeze(tuple(dim))


def _elu(z: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    if scale == input_scale == 1:
        return NotImplemented  # type: ignore[no-any-return]
    if input_scale == 1:
        return scale * F.elu(z, alpha)
    return scale * (torch.relu(z) + alpha * (torch.exp(-torch.relu(-input_scale * z)) - 1))


def _celu(z: Tensor, alpha: float = 1.0) -> Tensor:
    return F.elu(z) if alpha == 1 else _elu(z, alpha, 1, 1 / alpha)


def _clamp(z: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    z = z if min is None else torch.maximum(z, min)
    return z if max is None else torch.minimum(z, max)


def _softplus(z: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    if beta == 1 or threshold != 20:
        return NotImplemented  # type: ignore[no-any-return]
    return F.softplus(beta * z) / beta


def _power(z: Tensor, exponent: float) -> Tensor:
    known: dict[float, Callable[[Tensor], Tensor]] = {
        1: lambda z: z,
        2: lambda z: z * z,
        0.5: torch.sqrt,
        -0.5: lambda z: torch.reciprocal(torch.sqrt(z)),
        -1: torch.reciprocal,
    }
    return known[exponent](z) if exponent in known else NotImplemented


def _remainder(z: Tensor, divisor: Tensor | float) -> Tensor:
    return z - divisor * torch.floor(z / divisor)


def _glu(z: Tensor, dim: int = -1) -> Tensor:
    value, gate = z.chunk(2, dim)
    return value * torch.sigmoid(gate)


WRITTEN_OUT: dict[torch._ops.OpOverload, Callable[..., object]] = {
    # torch's own decomposition of lerp branches on the weight
    aten.lerp.Tensor: lambda start, end, weight: start + weight * (end - start),
    aten.lerp.Scalar: lambda start, end, weight: start + weight * (end - start),
    aten.addcmul.default: lambda to, a, b, value=1: to + value * (a * b),
    aten.addcdiv.default: lambda to, a, b, value=1: to + value * (a / b),
    aten.hardsigmoid.default: lambda z: torch.clamp(z / 6 + 0.5, 0, 1),
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten._fused_rms_norm.default: _rms_norm,
    # equal lengths are sorted before they are packed: rows then stay in their order
    aten.sort.default: lambda z, dim=-1, descending=False: torch.sort(
        z, dim=dim, descending=descending, stable=True
    ),
    aten.var.correction: _var,
    aten.std.correction: _std,
    aten.logsumexp.default: _logsumexp,
    aten.max.dim: lambda z, dim, keepdim=False: (
        torch.amax(z, dim, keepdim),
        torch.argmax(z, dim, keepdim),
    ),
    aten.min.dim: lambda z, dim, keepdim=False: (
        -torch.amax(-z, dim, keepdim),
        torch.argmin(z, dim, keepdim),
    ),
    aten.amin.default: lambda z, dim=(), keepdim=False: -torch.amax(-z, dim, keepdim),
    aten.elu.default: _elu,
    aten.celu.default: _celu,
    aten.selu.default: lambda z: SELU_SCALE * F.elu(z, SELU_ALPHA),
    aten.softplus.default: _softplus,
    aten.log_sigmoid_forward.default: lambda z: (-F.softplus(-z), z.new_zeros(0)),
    aten.silu.default: lambda z: z * torch.sigmoid(z),
    aten.mish.default: lambda z: z * torch.tanh(F.softplus(z)),
    aten.glu.default: _glu,
    aten._prelu_kernel.default: lambda z, slope: torch.relu(z) - slope * torch.relu(-z),
    aten.softshrink.default: lambda z, least=0.5: z - torch.clamp(z, -least, least),
    aten.square.default: lambda z: z * z,
    aten.rsqrt.default: lambda z: torch.reciprocal(torch.sqrt(z)),
    aten.log1p.default: lambda z: torch.log(1 + z),
    aten.expm1.default: lambda z: torch.exp(z) - 1,
    aten.log2.default: lambda z: torch.log(z) / log(2),
    aten.log10.default: lambda z: torch.log(z) / log(10),
    aten.exp2.default: lambda z: torch.exp(log(2) * z),
    aten.pow.Scalar: lambda base, z: torch.exp(log(base) * z) if base > 0 else NotImplemented,
    aten.pow.Tensor_Scalar: _power,
    aten.remainder.Scalar: _remainder,
    aten.remainder.Tensor: _remainder,
    aten.clamp.Tensor: _clamp,
    aten.logical_not.default: lambda z: torch.eq(z, 0),
    aten.bitwise_not.default: lambda z: torch.eq(z, 0) if z.dtype is torch.bool else NotImplemented,
    aten.masked_fill.Scalar: lambda z, mask, value: torch.where(mask, value, z),
    aten.masked_fill.Tensor: lambda z, mask, value: torch.where(mask, value, z),
}
