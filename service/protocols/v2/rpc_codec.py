"""Protobuf messages as the messages of v2, and back.

Rules
- Tensors come in `raw_input_contents`, one for each input, or in the `contents` of each, never
  both. FP16 and BF16 have no `contents` in the protocol.
- Replies have `raw_output_contents`, as Triton's have, however the request came; with the parameter
  `binary_data_output` false, which is HTTP's word for it, the outputs have `contents`.
- Shared memory is refused, not ignored: the tensor would be missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from service.errors import RequestError
from service.protocols.v2 import messages as v2
from service.protocols.v2.datatypes import Datatype, find_datatype, read_raw, read_values, write_raw
from service.protocols.v2.proto import inference_pb2 as pb

RAW_OUTPUT = "binary_data_output"
SHARED_MEMORY = "shared_memory_"
# The field of `contents` that holds a datatype's elements.
CONTENTS_OF = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def read_request(message: pb.ModelInferRequest) -> v2.InferRequest:
    """RequestError or ShapeError if it is not a whole request, whatever the model."""
    parameters = read_parameters(message.parameters)
    _check_raw_output(parameters.pop(RAW_OUTPUT, True))
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise RequestError(
            f"`raw_input_contents` has {len(raw)} elements, expected one for each of "
            f"{len(message.inputs)} inputs, or none"
        )
    return v2.InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        parameters=parameters,
        inputs=tuple(
            _read_input(tensor, raw[place] if raw else None)
            for place, tensor in enumerate(message.inputs)
        ),
        outputs=tuple(_read_requested(output) for output in message.outputs),
    )


def read_parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, object]:
    """name -> bool, int, str or float; RequestError if one has no value."""
    values: dict[str, object] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise RequestError(f"the parameter `{name}` has no value; set one, or leave it out")
        values[name] = getattr(parameter, kind)
    return values


def wants_raw(message: pb.ModelInferRequest) -> bool:
    """Whether its reply has `raw_output_contents`; `read_request` has checked the parameter."""
    parameter = message.parameters.get(RAW_OUTPUT)
    return parameter is None or parameter.bool_param


def write_response(response: v2.InferResponse, raw: bool = True) -> pb.ModelInferResponse:
    message = pb.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    for name, value in response.parameters.items():
        write_parameter(message.parameters[name], value)
    for output in response.outputs:
        tensor = message.outputs.add(
            name=output.name, datatype=output.datatype.name, shape=output.data.shape
        )
        if raw:
            message.raw_output_contents.append(write_raw(output.datatype, output.data))
        else:
            field = getattr(tensor.contents, CONTENTS_OF[output.datatype.name])
            field.extend(output.data.ravel().tolist())
    return message


def write_parameter(parameter: pb.InferParameter, value: bool | int | str) -> None:
    match value:
        case bool():
            parameter.bool_param = value
        case int() if value >= 2**63:
            parameter.uint64_param = value
        case int():
            parameter.int64_param = value
        case _:
            parameter.string_param = value


def _check_raw_output(value: object) -> None:
    if not isinstance(value, bool):
        raise RequestError(f"`{RAW_OUTPUT}` is {value!r}, expected true or false")


def _read_input(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> v2.InferInput:
    name, shape = tensor.name, list(tensor.shape)
    _refuse_shared_memory(name, tensor.parameters)
    datatype = find_datatype(tensor.datatype)
    if raw is None:
        values = _contents_of(tensor, datatype)
        return v2.InferInput(name, datatype, read_values(name, datatype, shape, values))
    if tensor.HasField("contents"):
        raise RequestError(
            f"`{name}` has `contents`, and `raw_input_contents` too; send one of them"
        )
    return v2.InferInput(name, datatype, read_raw(name, datatype, shape, raw))


def _contents_of(
    tensor: pb.ModelInferRequest.InferInputTensor, datatype: Datatype
) -> Sequence[Any]:
    """The elements of an input, of the one list that its datatype has."""
    field = CONTENTS_OF.get(datatype.name)
    if field is None:
        raise RequestError(f"`{tensor.name}` is {datatype.name}; send it in `raw_input_contents`")
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if filled not in ([field], []):
        raise RequestError(
            f"`{tensor.name}` is {datatype.name} and has {' and '.join(filled)}, expected {field}"
        )
    return list(getattr(tensor.contents, field))


def _read_requested(
    output: pb.ModelInferRequest.InferRequestedOutputTensor,
) -> v2.RequestedOutput:
    _refuse_shared_memory(output.name, output.parameters)
    return v2.RequestedOutput(output.name, read_parameters(output.parameters))


def _refuse_shared_memory(tensor: str, parameters: Mapping[str, pb.InferParameter]) -> None:
    if any(name.startswith(SHARED_MEMORY) for name in parameters):
        raise RequestError(
            f"`{tensor}` is in shared memory, which this server does not take; send its bytes"
        )
