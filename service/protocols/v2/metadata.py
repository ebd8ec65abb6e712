"""What a server says of itself and its models in v2, as the JSON of its HTTP replies.

Each reply is the JSON form of the message of the same name in gRPC. A model is its newest version
here, unless a version is named. `x` and `y` are (B, T, ...): B and T are free, which is -1; the
configuration leaves B out, as Triton's do where there is a `max_batch_size`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from service.catalog import Catalog
from service.engine import Engine
from service.errors import ArtifactError, CarouselError, DrainingError, ModelLoadingError
from service.manifest import Dim
from service.model import Model
from service.protocols.v2.datatypes import DATATYPES, OF_PORTS, Datatype
from service.protocols.v2.inference import output_datatype
from service.protocols.v2.tensor_rows import INPUT

VERSION = "0.1.0"  # of pyproject.toml, which the serving image does not have
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "sequence",
    "sequence(string_id)",
    "statistics",
)
PLATFORMS = {"onnx": "onnxruntime_onnx", "torchscript": "pytorch_torchscript"}
FREE = -1

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model configuration says of the server."""

    max_batch: int
    max_sessions: int
    idle_timeout_s: float


def server_metadata() -> Json:
    return {"name": "carousel", "version": VERSION, "extensions": list(EXTENSIONS)}


# Is it there? -----------------------------------------------------------------------------------


async def check_ready(engine: Engine) -> None:
    """Return if the server can serve every model; raise why it cannot.

    Raises:
        DrainingError: it is shutting down.
        ArtifactError: of a model no version can be served.
        StoreUnavailableError: the store of the sessions is not there.
    """
    if engine.is_draining:
        raise DrainingError("the server is shutting down")
    for error in engine.catalog.unserved:  # what is served is not for everybody
        raise type(error)("a model is not served; the repository index says which, and why")
    await engine.reach_store()


def check_model_ready(engine: Engine, name: str, version: str = "") -> None:
    """Return if the model is loaded and proven.

    Raises:
        UnknownModelError: there is none.
        ArtifactError: it is broken.
        ModelLoadingError: it is not loaded; the first request for it loads it.
        DrainingError: the server is shutting down.
    """
    if engine.is_draining:
        raise DrainingError("the server is shutting down")
    engine.catalog.get(reference_of(name, version))


def reference_of(name: str, version: str) -> str:
    return f"{name}:{version}" if version else name


# What is it? ------------------------------------------------------------------------------------


def model_metadata(catalog: Catalog, model: Model) -> Json:
    return {
        "name": model.name,
        "versions": catalog.versions_of(model.name),
        "platform": _platform(model),
        "inputs": [
            {
                "name": INPUT,
                "datatype": _input_datatype(model).name,
                "shape": [FREE, *_input_dims(model)],
            }
        ],
        "outputs": [
            {
                "name": name,
                "datatype": _output_datatype(model, name).name,
                "shape": [FREE, *_dims_of(model, name)],
            }
            for name in model.reader.fields
        ],
    }


def model_config(model: Model, limits: Limits) -> Json:
    """Triton's ModelConfig."""
    ports = model.artifact.manifest.ports
    return {
        "name": model.name,
        "platform": _platform(model),
        "backend": "carousel",
        "version_policy": {"all": {}},
        "max_batch_size": limits.max_batch,
        "input": [
            {
                "name": INPUT,
                "data_type": _input_datatype(model).config_name,
                "format": "FORMAT_NONE",
                "dims": _input_dims(model),
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": False,
            }
        ],
        "output": [
            {
                "name": name,
                "data_type": _output_datatype(model, name).config_name,
                "dims": _dims_of(model, name),
                "label_filename": "",
                "is_shape_tensor": False,
            }
            for name in model.reader.fields
        ],
        "batch_input": [],
        "batch_output": [],
        "sequence_batching": {
            "oldest": {
                "max_candidate_sequences": limits.max_sessions,
                "preferred_batch_size": [],
                "max_queue_delay_microseconds": 0,
            },
            "max_sequence_idle_microseconds": round(limits.idle_timeout_s * 1e6),
            "control_input": [],
            "state": [
                {
                    "input_name": state.input,
                    "output_name": state.output,
                    "data_type": DATATYPES[OF_PORTS[state.dtype]].config_name,
                    "dims": _tail(state.shape, 1),
                }
                for state in ports.states
            ],
        },
        "instance_group": [{"name": model.name, "kind": "KIND_CPU", "count": 1}],
        "default_model_filename": "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {
            "mode": {"string_value": model.artifact.manifest.mode},
            "variant": {"string_value": model.runtime.variant},
            "version": {"string_value": model.version},
        },
        "model_warmup": [],
        "model_transaction_policy": {"decoupled": False},
    }


def repository_index(catalog: Catalog, ready_only: bool = False) -> list[Json]:
    """Every version of every model, with its state and the reason of it."""
    found: list[Json] = []
    for name in catalog.names:
        for version in catalog.versions_of(name):
            found.append(_entry(catalog, name, version))
    for broken, error in catalog.broken.items():
        name, _, version = broken.partition(":")
        found.append(_unavailable(name, version, error))
    return [entry for entry in found if entry["state"] == "READY"] if ready_only else found


def _entry(catalog: Catalog, name: str, version: str) -> Json:
    try:
        catalog.get(reference_of(name, version))
    except (ModelLoadingError, ArtifactError) as error:
        return _unavailable(name, version, error)
    return {"name": name, "version": version, "state": "READY", "reason": ""}


def _unavailable(name: str, version: str, error: CarouselError) -> Json:
    return {"name": name, "version": version, "state": "UNAVAILABLE", "reason": error.message}


def _platform(model: Model) -> str:
    return PLATFORMS.get(model.runtime.variant.partition("-")[0], "pytorch_export")


def _input_datatype(model: Model) -> Datatype:
    is_text = model.row_shape.vocabulary is not None
    return DATATYPES["BYTES" if is_text else OF_PORTS[model.artifact.manifest.ports.x.dtype]]


def _input_dims(model: Model) -> list[int]:
    """Without B; one text is one element, and its tokens are one each."""
    is_text = model.row_shape.vocabulary is not None
    return [FREE] if is_text else [FREE, *model.row_shape.tail]


def _output_datatype(model: Model, field: str) -> Datatype:
    return output_datatype(field, model.artifact.manifest.ports.y.dtype)


def _dims_of(model: Model, field: str) -> list[int]:
    """Of an output; without B."""
    if field == "text":
        return [1]
    tail = _tail(model.artifact.manifest.ports.y.shape)
    return [FREE, *(tail if field in ("y", "probabilities") else [])]


def _tail(shape: Sequence[Dim], start: int = 2) -> list[int]:
    return [int(dim) for dim in shape[start:]]
