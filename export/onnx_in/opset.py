"""A file's graph at the opset that our graphs have."""

import onnx

from export.errors import LoweringError
from export.graphs.graph_builder import IR_VERSION, MICROSOFT, OPSET

DOMAINS = ("", "ai.onnx", MICROSOFT)


def at_our_opset(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy at the opset that our graphs have.

    Raises:
        LoweringError: it has operators that cannot be converted, or of an unknown domain.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if foreign := {o.domain for o in copy.opset_import} - set(DOMAINS):
        used = sorted({n.domain for n in copy.graph.node} & foreign)
        if used:
            raise LoweringError(f"{name} has operators of {used}, which no graph of ours can hold")
    version = next((o.version for o in copy.opset_import if o.domain in ("", "ai.onnx")), OPSET)
    if version != OPSET:
        copy = _converted(copy, version, name)
    copy.ir_version = IR_VERSION
    return copy


def _converted(proto: onnx.ModelProto, version: int, name: str) -> onnx.ModelProto:
    """By ONNX's converter; where it has no rule, with the same nodes if they are valid there too.

    Whether they compute the same, the comparison with the file shows.
    """
    fault: Exception
    try:
        proto = onnx.version_converter.convert_version(proto, OPSET)
        onnx.checker.check_model(proto)
        return proto
    except Exception as error:  # the converter raises RuntimeError and others
        fault = error
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = OPSET
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise LoweringError(
            f"{name} is at opset {version} and cannot be taken to {OPSET}: "
            f"{str(fault).splitlines()[0]}; export it with opset_version={OPSET}"
        ) from error
    return proto
