"""The bodies of an inference over HTTP: JSON, and after it the bytes of tensors.

Rules
- A tensor of a request is `data`, flat or nested as its shape, or `binary_data_size` bytes after
  the JSON, in the order of the inputs; `Inference-Header-Content-Length` says where the JSON ends.
  Every byte belongs to a tensor.
- FP16 and BF16 are no JSON numbers, so they come as bytes.
- An output leaves as bytes where its `binary_data`, or else `binary_data_output`, says so.
- Keys that are not ours are ignored, as other servers do; parameters are not (inference.py).
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from service.errors import InvalidJsonError, RequestError, ShapeError
from service.protocols.v2.datatypes import (
    Array,
    Datatype,
    check_shape,
    find_datatype,
    read_raw,
    read_values,
    write_raw,
)
from service.protocols.v2.messages import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RequestedOutput,
)
from service.wire import encode

_Parameters = dict[str, bool | int | float | str]
_JSON_KINDS: dict[str, type] = {"b": bool, "u": int, "i": int, "f": float, "O": str}
_BINARY_ONLY = ("FP16", "BF16")
SIZE, BINARY, ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"
_MEMORY = "shared_memory_"  # how the names of another extension's parameters begin


class _Tensor(msgspec.Struct, frozen=True):
    name: str
    shape: list[int]
    datatype: str
    parameters: _Parameters | None = None
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct, frozen=True):
    name: str
    parameters: _Parameters | None = None


class _Body(msgspec.Struct, frozen=True):
    inputs: list[_Tensor]
    id: str = ""
    parameters: _Parameters | None = None
    outputs: list[_Output] | None = None


_bodies = msgspec.json.Decoder(_Body)


class Form(msgspec.Struct, frozen=True):
    """How the outputs of a reply leave."""

    all_binary: bool = False
    binary: Mapping[str, bool] | None = None  # of the outputs that say so themselves

    def is_binary(self, name: str) -> bool:
        return (self.binary or {}).get(name, self.all_binary)


# In ---------------------------------------------------------------------------------------------


def read_infer(
    body: bytes, header: bytes | None, model_name: str, model_version: str
) -> tuple[InferRequest, Form]:
    """A request's body.

    Args:
        header: what `Inference-Header-Content-Length` says; None: all of the body is JSON.
    Raises:
        ClientError: it is no inference request. Send another.
    """
    view = memoryview(body)
    length = len(body) if header is None else _length(header, len(body))
    parsed = _parse(view[:length])
    inputs, rest = [], view[length:]
    for tensor in parsed.inputs:
        one, rest = _read_input(tensor, rest)
        inputs.append(one)
    if rest:
        raise RequestError(
            f"the body has {len(rest)} bytes after the last tensor, expected none; the inputs' "
            f"`{SIZE}` must add up to what follows the JSON"
        )
    asked, own = _split(parsed.parameters or {}, ALL_BINARY)
    outputs, binary = [], {}
    for output in parsed.outputs or []:
        its, flag = _split(output.parameters or {}, BINARY)
        outputs.append(RequestedOutput(output.name, its))
        if flag is not None:
            binary[output.name] = flag
    request = InferRequest(
        model_name=model_name,
        model_version=model_version,
        id=parsed.id,
        parameters=asked,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
    )
    return request, Form(own or False, binary)


def _length(header: bytes, size: int) -> int:
    if not header.isdigit() or len(header) > 18 or int(header) > size:
        shown = header[:40].decode("latin-1")
        raise RequestError(
            f"Inference-Header-Content-Length is {shown!r}, expected the length of the JSON in a "
            f"body of {size} bytes"
        )
    return int(header)


def _parse(text: memoryview) -> _Body:
    try:
        return _bodies.decode(text)
    except msgspec.ValidationError as error:
        raise RequestError(
            f"{str(error).replace('`$.', '`').replace('`$`', 'the body')}; expected {{inputs: "
            "[{name, shape, datatype, data?, parameters?}], outputs?, id?, parameters?}"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJsonError(
            f"the {len(text)} bytes of JSON cannot be read: {error}; NaN and Infinity are no JSON "
            "numbers, and Inference-Header-Content-Length says where JSON ends and bytes begin"
        ) from error


def _split(parameters: _Parameters, flag: str) -> tuple[_Parameters, bool | None]:
    """Parameters without one of the codec's flags, and that flag."""
    value = parameters.get(flag)
    if value is None:
        return parameters, None
    if not isinstance(value, bool):
        raise RequestError(f"`{flag}` is {value!r}, expected true or false")
    return {name: one for name, one in parameters.items() if name != flag}, value


def _read_input(tensor: _Tensor, rest: memoryview) -> tuple[InferInput, memoryview]:
    """A tensor, and what follows its bytes."""
    name, datatype = tensor.name, find_datatype(tensor.datatype)
    shape = check_shape(name, tensor.shape)
    parameters = tensor.parameters or {}
    if any(parameter.startswith(_MEMORY) for parameter in parameters):
        raise RequestError(
            f"`{name}` is in shared memory, which is not offered; send `data`, or its bytes"
        )
    size = parameters.get(SIZE)
    raw = bytes(tensor.data)
    if size is None:
        if not raw:
            raise RequestError(f"`{name}` has neither `data` nor `{SIZE}`, expected one of them")
        return InferInput(name, datatype, _read_json(name, datatype, shape, raw)), rest
    if raw:
        raise RequestError(f"`{name}` has both `data` and `{SIZE}`, expected one of them")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest):
        raise RequestError(
            f"`{name}` has `{SIZE}` {size!r}, and {len(rest)} bytes follow; expected at most so "
            "many"
        )
    data = read_raw(name, datatype, shape, bytes(rest[:size]))
    return InferInput(name, datatype, data), rest[size:]


def _read_json(name: str, datatype: Datatype, shape: tuple[int, ...], raw: bytes) -> Array:
    if datatype.name in _BINARY_ONLY:
        raise RequestError(
            f"`{name}` is {datatype.name}, which JSON does not have; send its bytes after the "
            f"JSON (`{SIZE}`)"
        )
    kind = datatype.dtype.kind
    try:
        values = _decoder(1, kind).decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        values = _read_nested(name, datatype, shape, raw)
    if kind == "O":
        values = [_to_bytes(name, text) for text in values]
    return read_values(name, datatype, shape, values)


def _read_nested(
    name: str, datatype: Datatype, shape: tuple[int, ...], raw: bytes
) -> Sequence[Any]:
    wanted = f"{datatype.name}, flat or nested as its shape {list(shape)}"
    try:
        level = [_decoder(len(shape), datatype.dtype.kind).decode(raw)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = str(error).replace("`$", "`data")
        raise ShapeError(f"`data` of `{name}`: {why}; expected {wanted}") from None
    for size in shape:
        for part in level:
            if len(part) != size:
                raise ShapeError(
                    f"`data` of `{name}` has a list of {len(part)}, expected {size}: {wanted}"
                )
        level = [item for part in level for item in part]
    return level


def _to_bytes(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidJsonError(
            f"`data` of `{name}` holds half of a surrogate pair, which is no character"
        ) from None


@lru_cache(maxsize=64)
def _decoder(rank: int, kind: str) -> "msgspec.json.Decoder[Any]":
    wanted: Any = _JSON_KINDS[kind]
    for _ in range(rank):
        wanted = list[wanted]
    return msgspec.json.Decoder(wanted)


# Out --------------------------------------------------------------------------------------------


def write_infer(response: InferResponse, form: Form) -> tuple[bytes, int | None]:
    """A reply's body, and the length of its JSON where bytes follow."""
    tensors: list[bytes] = []
    outputs = [_write_output(output, form, tensors) for output in response.outputs]
    head: dict[str, object] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        "outputs": outputs,
    }
    if response.id:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = response.parameters
    json = encode(head)
    return b"".join((json, *tensors)), len(json) if tensors else None


def _write_output(output: InferOutput, form: Form, tensors: list[bytes]) -> dict[str, object]:
    body: dict[str, object] = {
        "name": output.name,
        "datatype": output.datatype.name,
        "shape": list(output.data.shape),
    }
    if form.is_binary(output.name):
        tensors.append(write_raw(output.datatype, output.data))
        body["parameters"] = {SIZE: len(tensors[-1])}
    elif output.datatype.size is None:
        body["data"] = [element.decode() for element in output.data.flat]
    else:
        body["data"] = output.data.ravel()
    return body
