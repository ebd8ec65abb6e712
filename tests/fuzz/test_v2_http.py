"""Inferences of v2 that are not what they should be: refused, never a 5xx, and no sequence moves.

One sequence is what everything is aimed at. Where it stands afterwards must be what the reply said:
where it stood, if the request was refused.
"""

import gzip
import json
import struct
from typing import Any

import httpx
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import Case

from service.protocols.openapi_form import SECURITY_SCHEMES
from service.protocols.openapi_v2 import v2_paths
from service.protocols.v2.datatypes import DATATYPES
from tests.fuzz.conftest import FUZZ, Target
from tests.fuzz.test_openapi import NOT_ASKED

PREY = "v2-prey"
INFER = "/v2/models/sine-cell/infer"
LENGTH = "inference-header-content-length"

schema = schemathesis.openapi.from_dict(
    {
        "openapi": "3.0.2",
        "info": {"title": "v2", "version": "1"},
        "paths": v2_paths(),
        "components": {"securitySchemes": SECURITY_SCHEMES},
    }
)


def test_the_page_has_v2(target: Target) -> None:
    """As it is fuzzed below."""
    page = target.client.get("/docs.json").json()
    assert {path: page["paths"][path] for path in v2_paths()} == v2_paths()


@schema.parametrize()
@settings(FUZZ, max_examples=12)  # the bodies of an inference are fuzzed below
def test_every_route_of_v2_answers_as_its_page_says(case: Case[Any], target: Target) -> None:
    """Valid and invalid, in every place of a request; keys that are not ours are ignored.

    But for a timeout: 504 is then what was asked for.
    """
    if isinstance(case.body, dict) and isinstance(asked := case.body.get("parameters"), dict):
        asked.pop("timeout", None)
    response = case.call(base_url=target.server.url)
    excluded = [*NOT_ASKED, *schemathesis.checks.CHECKS.get_by_names(["negative_data_rejection"])]
    case.validate_response(response, excluded_checks=excluded)
    assert b"Traceback" not in response.content


numbers = st.integers(-3, 70) | st.sampled_from([2**31, 2**63 - 1, 2**64 - 1, 2**64, 10**400])
scalars = st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | st.text(max_size=5)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
shapes = st.sampled_from([[1, 1, 1], [1, 2, 1], [2, 1, 1], [1, 1], [1]]) | st.lists(
    numbers, max_size=10
)
parameters = st.dictionaries(
    st.sampled_from(
        [
            *("sequence_id", "sequence_start", "sequence_end", "step", "idempotency_key"),
            *("timeout", "priority", "binary_data_output", "triton_x", "unknown"),
        ]
    ),
    scalars,
    max_size=2,
)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    """A tensor that is nearly right, and the bytes that follow."""
    datatype = draw(st.sampled_from([*DATATYPES, "FP32", "FP64", "FLOAT"]))
    tensor: dict[str, Any] = {"name": draw(st.sampled_from(["x", "x", "x", "y", ""]))}
    tensor |= {"shape": draw(shapes), "datatype": datatype}
    raw = b""
    if draw(st.booleans()):
        tensor["data"] = draw(
            st.lists(st.floats(-9, 9), max_size=4) | st.just([[[0.5]]]) | st.just([0.5]) | anything
        )
    else:
        raw = draw(
            st.binary(max_size=20)
            | st.sampled_from([struct.pack("<f", 0.5), struct.pack("<d", 0.5)])
            | st.sampled_from([struct.pack("<f", float("nan")), struct.pack("<I", 9) + b"text"])
        )
        size = draw(st.sampled_from([len(raw)] * 4 + [0, -1, len(raw) + 1]) | scalars)
        tensor["parameters"] = {"binary_data_size": size}
    return tensor, raw


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, dict[str, str]]:
    """A body and its headers."""
    parts = draw(st.lists(tensors(), min_size=1, max_size=2 if draw(st.booleans()) else 1))
    body: dict[str, Any] = {
        "inputs": [tensor for tensor, _ in parts],
        "parameters": {"sequence_id": PREY, **draw(parameters)},
    }
    if draw(st.booleans()):
        outputs = st.fixed_dictionaries(
            {"name": st.sampled_from(["y", "z"])}, optional={"parameters": parameters}
        )
        body["outputs"] = draw(st.lists(outputs, max_size=2) | anything)
    if draw(st.integers(0, 9)) == 0:
        body[draw(st.sampled_from(["inputs", "parameters", "id", "outputs"]))] = draw(anything)
    head = json.dumps(body).encode()
    length = len(head) + draw(st.sampled_from([0] * 8 + [1, -1, 100]))
    headers = {LENGTH: draw(st.sampled_from([str(length)] * 8 + ["", "-1", "x", "9" * 30]))}
    if draw(st.integers(0, 4)) == 0:
        del headers[LENGTH]
    sent = head + b"".join(raw for _, raw in parts)
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(sent)))
        sent = sent[:at] + draw(st.binary(max_size=3)) + sent[at + draw(st.integers(0, 2)) :]
    coding = draw(st.sampled_from([None] * 8 + ["gzip", "deflate", "br"]))
    if coding is not None:
        headers["content-encoding"] = coding
        sent = gzip.compress(sent)
    return sent, headers


def infer(target: Target, body: bytes, headers: dict[str, str]) -> httpx.Response:
    return target.client.post(INFER, content=body, headers=headers)


def begin(target: Target) -> None:
    """The prey stands at step 1."""
    body = {
        "inputs": [{"name": "x", "shape": [1, 1, 1], "datatype": "FP32", "data": [0.5]}],
        "parameters": {"sequence_id": PREY, "sequence_start": True},
    }
    infer(target, json.dumps(body).encode(), {}).raise_for_status()


@FUZZ
@given(request=requests())
def test_a_bad_inference_moves_nothing(
    target: Target, request: tuple[bytes, dict[str, str]]
) -> None:
    """What is accepted moves the sequence as its reply says, or another, or none."""
    begin(target)
    reply = infer(target, *request)
    assert b"Traceback" not in reply.content
    if reply.status_code == 504 and b'"timeout"' in request[0]:
        return  # it was run or not, as under any timeout
    assert reply.status_code < 500
    stands = target.stand(PREY)
    if reply.status_code != 200:
        assert list(reply.json()) == ["error"]
        assert stands == 1
        return
    length = int(reply.headers.get(LENGTH, len(reply.content)))
    said = json.loads(reply.content[:length]).get("parameters", {})
    if said.get("sequence_id") != PREY:
        assert stands == 1
    else:
        assert stands in (said["step"], 0)  # 0: it ended
        assert said["created"] or said["step"] > 1


def test_some_of_them_are_accepted(target: Target) -> None:
    """The fuzzing is near enough to what is right: what it makes of a good tensor runs."""
    begin(target)
    tensor = {"name": "x", "shape": [1, 1, 1], "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": 4}  # type: ignore[assignment]
    head = json.dumps({"inputs": [tensor], "parameters": {"sequence_id": PREY}}).encode()
    reply = infer(target, head + struct.pack("<f", 0.5), {LENGTH: str(len(head))})
    assert (reply.status_code, target.stand(PREY)) == (200, 2)
