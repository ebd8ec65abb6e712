"""ONNX Runtime by itself, to compute what a graph gives while it is being made."""

import onnx
import onnxruntime as ort

FATAL_ONLY = 4  # what else goes wrong is raised


def start_session(proto: onnx.ModelProto) -> ort.InferenceSession:
    """A session of one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = FATAL_ONLY
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
