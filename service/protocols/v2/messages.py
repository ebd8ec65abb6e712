"""The messages of v2, as every codec gives and takes them: a tensor is an array."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from service.protocols.v2.datatypes import Datatype

Array = np.ndarray
Parameters = Mapping[str, object]  # bool, int, float or str; what else came is refused


@dataclass(frozen=True, slots=True, eq=False)
class InferInput:
    """A tensor that came."""

    name: str
    datatype: Datatype
    data: Array  # of the datatype's dtype; BYTES: bytes objects


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the client wants."""

    name: str
    parameters: Parameters = field(default_factory=dict)  # without those of the codec


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """One inference request."""

    model_name: str
    inputs: tuple[InferInput, ...]
    model_version: str = ""  # "": the session's own, or the newest
    id: str = ""
    parameters: Parameters = field(default_factory=dict)  # without those of the codec
    outputs: tuple[RequestedOutput, ...] = ()  # none: all


@dataclass(frozen=True, slots=True, eq=False)
class InferOutput:
    """A tensor of a reply."""

    name: str
    datatype: Datatype
    data: Array


@dataclass(frozen=True, slots=True, eq=False)
class InferResponse:
    """The reply to an inference request."""

    model_name: str
    model_version: str
    id: str
    outputs: tuple[InferOutput, ...]
    parameters: dict[str, bool | int | str] = field(default_factory=dict)
