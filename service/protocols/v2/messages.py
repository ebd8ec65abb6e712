"""The messages of v2, as every codec gives and takes them: a tensor is an array.

msgspec's structs, as a request makes six of them: 0.1 us each, a frozen dataclass 0.7.
"""

from collections.abc import Mapping

import numpy as np
from msgspec import Struct, field

from service.protocols.v2.datatypes import Datatype

Array = np.ndarray
Parameters = Mapping[str, object]  # bool, int, float or str; what else came is refused


class InferInput(Struct, frozen=True, eq=False):
    """A tensor that came."""

    name: str
    datatype: Datatype
    data: Array  # of the datatype's dtype; BYTES: bytes objects


class RequestedOutput(Struct, frozen=True):
    """An output that the client wants."""

    name: str
    parameters: Parameters = field(default_factory=dict)  # without those of the codec


class InferRequest(Struct, frozen=True, eq=False):
    """One inference request."""

    model_name: str
    inputs: tuple[InferInput, ...]
    model_version: str = ""  # "": the session's own, or the newest
    id: str = ""
    parameters: Parameters = field(default_factory=dict)  # without those of the codec
    outputs: tuple[RequestedOutput, ...] = ()  # none: all


class InferOutput(Struct, frozen=True, eq=False):
    """A tensor of a reply."""

    name: str
    datatype: Datatype
    data: Array


class InferResponse(Struct, frozen=True, eq=False):
    """The reply to an inference request."""

    model_name: str
    model_version: str
    id: str
    outputs: tuple[InferOutput, ...]
    parameters: dict[str, bool | int | str] = field(default_factory=dict)
