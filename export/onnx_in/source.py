"""An ONNX file that somebody else exported, as a source: read, checked, its functions inlined.

Only ONNX's own operators and those that ONNX Runtime brings run here; a library of custom operators
is never loaded, since it is code.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import TensorProto, inliner

from export.errors import SourceError
from export.graphs.session import start_session
from export.source import load_example, load_pipeline, sha256_array
from service.pipeline import Pipeline

Array = np.ndarray
Dim = int | str | None  # a size, the name of a free axis, or a free axis without a name
SUFFIX = ".onnx"
TYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
}


@dataclass(frozen=True)
class FileValue:
    """An input or output as the file declares it."""

    name: str
    dtype: str  # numpy's name, or ONNX's of a type that cannot be carried
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"`{self.name}` {self.dtype} ({dims})"


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A checked ONNX model with its weights inside."""

    name: str  # the file's
    proto: onnx.ModelProto

    @cached_property
    def inputs(self) -> tuple[FileValue, ...]:
        """What a caller gives: the graph's inputs without those that have a value of their own."""
        given = {tensor.name for tensor in self.proto.graph.initializer}
        return tuple(_value(v) for v in self.proto.graph.input if v.name not in given)

    @cached_property
    def outputs(self) -> tuple[FileValue, ...]:
        return tuple(_value(v) for v in self.proto.graph.output)

    @cached_property
    def _session(self) -> ort.InferenceSession:
        return start_session(self.proto)

    def run(self, feeds: dict[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Run the file under ONNX Runtime."""
        found: list[Array] = self._session.run(list(outputs), feeds)
        return found


@dataclass(frozen=True)
class OnnxSource:
    """An ONNX file with its example, as loaded; beside `Source`, which is a torch module's."""

    spec: str  # the file's name
    module: OnnxModel
    weights_sha256: str
    example: Array  # (N, T, ...) in the client's raw units
    pipeline: Pipeline

    @property
    def example_sha256(self) -> str:
        return sha256_array(self.example)


def load_onnx_source(path: Path, example: Path, pipeline: Path | None = None) -> OnnxSource:
    """Read the file, the example, and perhaps a pipeline; see `export.source.load_source`.

    Raises:
        SourceError: one of them is missing or malformed.
    """
    model, sha256 = load_onnx_model(path)
    declared = load_pipeline(pipeline)
    return OnnxSource(path.name, model, sha256, load_example(example, declared), declared)


def load_onnx_model(path: Path) -> tuple[OnnxModel, str]:
    """Read and check an ONNX file; its weights may lie in files beside it.

    Returns:
        the model, and the sha256 over the file and those beside it.
    Raises:
        SourceError: it is no ONNX file, is malformed, or has operators that do not run here.
    """
    if not path.is_file():
        raise SourceError(f"{path} does not exist; give the path of an .onnx file")
    try:
        bare = onnx.load(path, load_external_data=False)
        proto = onnx.load(path)
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:  # also: weights outside the file's folder
        raise SourceError(f"{path} is not a valid ONNX model: {_first_line(error)}") from error
    except (DecodeError, ValueError) as error:
        raise SourceError(f"{path} is not an ONNX file ({_first_line(error)})") from error
    except OSError as error:
        raise SourceError(
            f"{path} keeps weights in `{error.filename}`, which cannot be read: {error.strerror}; "
            "copy that file along, under the same name"
        ) from error
    digest = hashlib.sha256(path.read_bytes())
    if bare != proto:  # weights came from other files
        digest.update(proto.SerializeToString(deterministic=True))
    model = OnnxModel(path.name, inliner.inline_local_functions(proto))
    _refuse_types(model)
    try:
        start_session(model.proto)
    except Exception as error:  # ONNX Runtime has no common base for what it raises
        raise SourceError(
            f"{path} does not load in ONNX Runtime {ort.__version__}: {_first_line(error)}. "
            "Only ONNX's own operators and ONNX Runtime's run here; libraries of custom operators "
            "are not loaded"
        ) from error
    return model, digest.hexdigest()


def _refuse_types(model: OnnxModel) -> None:
    half = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    found = [t.name for t in model.proto.graph.initializer if t.data_type in half]
    found += [
        v.name
        for v in (*model.proto.graph.input, *model.proto.graph.output)
        if v.type.tensor_type.elem_type in half
    ]
    if found:
        raise SourceError(
            f"{model.name} is in 16-bit floats (`{found[0]}`): carried over a session's steps, "
            "their rounding depends on how the steps were cut. Export the model in float32; "
            "Carousel makes the int8 variants itself"
        )


def _value(value: onnx.ValueInfoProto) -> FileValue:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        return FileValue(value.name, "of unknown shape", ())
    dims: tuple[Dim, ...] = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim
    )
    dtype = TYPES.get(kind.elem_type) or TensorProto.DataType.Name(kind.elem_type).lower()
    return FileValue(value.name, dtype, dims)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
