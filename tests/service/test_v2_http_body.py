"""The bodies of v2 over HTTP, and the bytes of tensors: what is read, and what is refused."""

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from service.errors import ClientError, InvalidJsonError, RequestError, ShapeError
from service.protocols.v2.datatypes import (
    DATATYPES,
    Array,
    object_array,
    read_raw,
    read_values,
    write_raw,
)
from service.protocols.v2.http_body import Form, read_infer, write_infer
from service.protocols.v2.messages import InferInput, InferOutput, InferRequest, InferResponse

X: dict[str, Any] = {"name": "x", "shape": [1, 2, 1], "datatype": "FP32"}


def read(body: dict[str, Any], *raw: bytes, header: str | None = "") -> tuple[InferRequest, Form]:
    """`header`: "" is what it should be, where there are bytes."""
    head = json.dumps(body).encode()
    if header == "":
        header = str(len(head)) if raw else None
    length = None if header is None else header.encode()
    return read_infer(head + b"".join(raw), length, "m", "")


def x_of(request: InferRequest) -> InferInput:
    (one,) = request.inputs
    return one


def of_json(data: object, **more: Any) -> Array:
    request, _ = read({"inputs": [{**X, "data": data, **more}]})
    return x_of(request).data


# The bytes of a tensor ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in DATATYPES if name not in ("BYTES", "BF16")])
def test_bytes_of_a_tensor_are_little_endian_row_major(name: str) -> None:
    """As numpy writes them; and back."""
    datatype = DATATYPES[name]
    array = (np.arange(6).reshape(2, 3) % 2 + 3).astype(datatype.dtype)
    assert write_raw(datatype, array) == array.tobytes()
    found = read_raw("x", datatype, [2, 3], array.tobytes())
    assert np.array_equal(found, array) and found.dtype == datatype.dtype
    assert datatype.config_name == f"TYPE_{name}"


def test_bf16_is_the_upper_half_of_fp32() -> None:
    """Whose value is kept."""
    array = np.array([[1.5, -2.25, 3e38, float("nan")]], ml_dtypes.bfloat16)
    found = read_raw("x", DATATYPES["BF16"], [1, 4], array.tobytes())
    assert np.array_equal(found, array.astype(np.float32), equal_nan=True)


def test_elements_of_bytes_say_their_length() -> None:
    """As the client of Triton writes and reads them."""
    elements = [b"", b"a", "ü".encode(), b"\x00" * 300]
    array = object_array(elements, (2, 2))
    raw = write_raw(DATATYPES["BYTES"], array)
    assert raw == serialize_byte_tensor(array).item()
    assert deserialize_bytes_tensor(raw).tolist() == elements
    assert read_raw("x", DATATYPES["BYTES"], [2, 2], raw).ravel().tolist() == elements


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01\x00\x00",
        b"\x01\x00\x00\x00",
        b"\x01\x00\x00\x00ab",
        b"\xff\xff\xff\xffab",
        b"\x00\x00\x00\x00\x00\x00\x00\x00",
    ],
)
def test_elements_that_do_not_add_up_are_refused(raw: bytes) -> None:
    """Cut off, too long, or more than there should be."""
    with pytest.raises(ShapeError, match="which are not 1 elements of BYTES"):
        read_raw("x", DATATYPES["BYTES"], [1], raw)


@pytest.mark.parametrize("shape", [[], [0], [2, -1], [1] * 9, [2**62, 2**62]])
def test_shapes_that_no_tensor_has_are_refused(shape: list[int]) -> None:
    """Nothing is allocated for them."""
    with pytest.raises(ShapeError, match=r"shape|bytes"):
        read_raw("x", DATATYPES["FP32"], shape, b"1234")
    with pytest.raises(ShapeError, match="shape"):
        read_values("x", DATATYPES["FP32"], shape, [1.0])


@pytest.mark.parametrize(("name", "value"), [("INT8", 128), ("UINT8", -1), ("UINT64", 2**64)])
def test_what_does_not_fit_its_datatype_is_refused(name: str, value: int) -> None:
    """It is not wrapped around."""
    with pytest.raises(ShapeError, match=f"no {name}"):
        of_json([value, 0], datatype=name)


# A request ----------------------------------------------------------------------------------------


def test_a_request_is_read_whole() -> None:
    """Its parameters without those of the codec."""
    request, form = read(
        {
            "id": "7",
            "model_name": "ignored, as others do",
            "inputs": [
                {**X, "parameters": {"binary_data_size": 8}},
                {"name": "z", "shape": [3], "datatype": "BOOL", "data": [True, False, True]},
                {
                    "name": "w",
                    "shape": [1],
                    "datatype": "INT16",
                    "parameters": {"binary_data_size": 2},
                },
            ],
            "outputs": [
                {"name": "y", "parameters": {"binary_data": False}},
                {"name": "text", "parameters": {"other": 1}},
            ],
            "parameters": {"sequence_id": 3, "binary_data_output": True},
        },
        np.array([1, 2], "<f4").tobytes(),
        np.array([9], "<i2").tobytes(),
    )
    x, z, w = request.inputs
    assert x.data.tolist() == [[[1.0], [2.0]]]
    assert (z.data.tolist(), w.data.tolist()) == ([True, False, True], [9])
    assert (request.id, request.parameters) == ("7", {"sequence_id": 3})
    assert [(one.name, one.parameters) for one in request.outputs] == [
        ("y", {}),
        ("text", {"other": 1}),
    ]
    assert (form.is_binary("y"), form.is_binary("text")) == (False, True)


@pytest.mark.parametrize("data", [[1, 2.5], [[[1], [2.5]]]])
def test_json_data_is_flat_or_nested(data: object) -> None:
    """Integers are numbers too."""
    assert of_json(data).tolist() == [[[1.0], [2.5]]]


def test_text_in_json_is_utf8() -> None:
    """An element each."""
    data = of_json(["ä", "b"], datatype="BYTES", shape=[1, 2])
    assert data.tolist() == [["ä".encode(), b"b"]]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ([1], "1 elements, expected 2"),
        ([1, 2, 3], "3 elements, expected 2"),
        ([[1], [2]], "Expected `array`"),
        ([[[1, 2]]], "a list of 1, expected 2"),
        ([["a", "b"]], "Expected"),
        (["1", "2"], "Expected `array`, got `str`"),
        ([True, False], "Expected `array`, got `bool`"),
        ([None, 1], "got `null`"),
        ("text", "Expected `array`, got `str`"),
        ({"a": 1}, "got `object`"),
        (None, "got `null`"),
    ],
)
def test_json_data_that_is_not_the_tensor_is_refused(data: object, why: str) -> None:
    """In words that say where."""
    with pytest.raises(ClientError, match=why):
        of_json(data)


@pytest.mark.parametrize(
    ("tensor", "raw", "why"),
    [
        ({}, b"", "neither `data` nor `binary_data_size`"),
        ({"data": [1, 2], "parameters": {"binary_data_size": 8}}, b"12345678", "both `data` and"),
        ({"parameters": {"binary_data_size": 8}}, b"1234567", "7 bytes follow"),
        ({"parameters": {"binary_data_size": 8}}, b"123456789", "1 bytes after the last tensor"),
        ({"parameters": {"binary_data_size": 4}}, b"1234", "has 4 bytes, expected 8 of FP32"),
        ({"parameters": {"binary_data_size": -1}}, b"1", "`binary_data_size` -1"),
        ({"parameters": {"binary_data_size": True}}, b"1", "`binary_data_size` True"),
        ({"parameters": {"binary_data_size": "8"}}, b"12345678", "`binary_data_size` '8'"),
        ({"parameters": {"shared_memory_region": "a"}}, b"", "shared memory, which is not offered"),
        ({"datatype": "FP16", "data": [1, 2]}, b"", "FP16, which JSON does not have"),
        ({"datatype": "BF16", "data": [1, 2]}, b"", "BF16, which JSON does not have"),
        ({"datatype": "FLOAT", "data": [1, 2]}, b"", "no datatype `FLOAT`"),
        ({"shape": [1, 2.5], "data": [1]}, b"", "Expected `int`"),
        ({"name": None, "data": [1]}, b"", "Expected `str`"),
    ],
)
def test_a_tensor_that_is_none_is_refused(tensor: dict[str, Any], raw: bytes, why: str) -> None:
    """Each byte belongs to a tensor, and each tensor has its bytes."""
    with pytest.raises(ClientError, match=why):
        read({"inputs": [{**X, **tensor}]}, *([raw] if raw else []))


@pytest.mark.parametrize("header", ["-1", "1e1", "", " 3", "99999", "9" * 40, "0x5"])
def test_a_length_of_the_json_that_is_none_is_refused(header: str) -> None:
    """It is the number of its bytes."""
    with pytest.raises(RequestError, match="Inference-Header-Content-Length"):
        read_infer(b'{"inputs": []}', header.encode(), "m", "")


def test_a_length_that_cuts_the_json_is_refused() -> None:
    """With what may be wrong."""
    with pytest.raises(InvalidJsonError, match="says where JSON ends"):
        read({"inputs": []}, header="5")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "cannot be read"),
        (b"[]", "expected {inputs"),
        (b"{}", "missing required field `inputs`"),
        (
            b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [NaN]}]}',
            "no JSON",
        ),
        (b'{"inputs": [], "id": 7}', "Expected `str`"),
        (b'{"inputs": [], "parameters": {"a": [1]}}', "parameters"),
        (b'{"inputs": [], "parameters": {"binary_data_output": 1}}', "expected true or false"),
        (b'{"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": 0}}]}', "is 0"),
        (b"[" * 100_000, "cannot be read|expected"),
        (b'{"inputs": [], "id": "\xff"}', "cannot be read"),
    ],
)
def test_json_that_is_no_request_is_refused(body: bytes, why: str) -> None:
    """Whatever it is."""
    with pytest.raises(ClientError, match=why):
        read_infer(body, None, "m", "")


# A reply ------------------------------------------------------------------------------------------


def test_a_reply_has_its_bytes_in_the_order_of_its_outputs() -> None:
    """Those that are JSON have none."""
    outputs = (
        InferOutput("y", DATATYPES["FP32"], np.array([[0.1], [2.0]], np.float32)),
        InferOutput("labels", DATATYPES["BYTES"], object_array([b"a", "ü".encode()], (1, 2))),
        InferOutput("alarm", DATATYPES["BOOL"], np.array([[True, False]])),
    )
    response = InferResponse("m", "v", "7", outputs, {"sequence_id": "s", "step": 2})
    body, length = write_infer(response, Form(False, {"y": True, "alarm": True}))
    assert length is not None
    assert json.loads(body[:length]) == {
        "model_name": "m",
        "model_version": "v",
        "id": "7",
        "parameters": {"sequence_id": "s", "step": 2},
        "outputs": [
            {
                "name": "y",
                "datatype": "FP32",
                "shape": [2, 1],
                "parameters": {"binary_data_size": 8},
            },
            {"name": "labels", "datatype": "BYTES", "shape": [1, 2], "data": ["a", "ü"]},
            {
                "name": "alarm",
                "datatype": "BOOL",
                "shape": [1, 2],
                "parameters": {"binary_data_size": 2},
            },
        ],
    }
    assert body[length:] == np.array([0.1, 2.0], "<f4").tobytes() + b"\x01\x00"
    plain, none = write_infer(response, Form())
    assert none is None
    y, _, alarm = json.loads(plain)["outputs"]
    assert (y["data"], alarm["data"]) == ([0.1, 2.0], [True, False])
