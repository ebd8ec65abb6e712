"""The artifact: a directory NAME/VERSION/ that holds one model, proven and sealed.

Rules
- `manifest.json` says everything; a file that it does not name does not count.
- Every file that it names carries its sha256 and is verified when the artifact is loaded.
- Batch is axis 0 of every port, states included.
- The version is derived from the content (`content_version`): same module, same example, same
  bytes give the same version on the same machine and library versions.

How it works: `Manifest` and its parts are frozen pydantic models that refuse unknown keys;
`Artifact.load` reads, verifies, and hands out paths; `StateLayout` turns a batch of sessions'
states into stacked arrays and back, as safetensors bytes, without knowing what they mean.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors.numpy import load_file

from service.errors import ArtifactError
from service.pipeline import Pipeline

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"  # what BentoML's tags take, too

Array = np.ndarray
State = dict[str, Array]  # state name -> (B, ...) array
Dim = int | str  # a size, or "B" / "T" where it is free
Dtype = Literal["float32", "int64"]
VariantName = Literal[
    "onnx-fp32", "onnx-int8", "onnx-int8-rowwise", "torchscript-fp32", "torchscript-int8"
]

_SAFETENSORS_DTYPES = {"float32": "F32", "int64": "I64"}
_HASH_BLOCK_BYTES = 1 << 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Port(_Part):
    """One input or output of the model."""

    dtype: Dtype
    shape: list[Dim]  # axis 0 is always "B"
    range: tuple[float, float] | None = None  # the least and greatest value seen at export
    ids: int | None = None  # integers from 0 to ids - 1, of an embedding's rows

    @model_validator(mode="after")
    def _batch_first(self) -> "Port":
        if not self.shape or self.shape[0] != "B":
            raise ValueError(f'axis 0 of a port must be "B", got shape {self.shape}')
        return self


class StatePort(Port):
    """A state: one input and one output port of the same dtype and shape."""

    name: str  # h
    input: str  # h_0
    output: str  # h_n
    bound: float | None = None  # |value| never exceeds it, by the model's mathematics

    @model_validator(mode="after")
    def _fixed(self) -> "StatePort":
        if any(isinstance(dim, str) for dim in self.shape[1:]):
            raise ValueError(f"state `{self.name}` has a free axis besides the batch: {self.shape}")
        return self


class Ports(_Part):
    """x, y and the states; the chunk graph also takes `lengths` (B,) int64."""

    x: Port
    y: Port
    states: list[StatePort]


class File(_Part):
    """A file of the artifact, relative to its directory."""

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int  # bytes


class Tolerance(_Part):
    """|variant - reference| <= atol + rtol * |reference|, element by element (unitless)."""

    atol: float
    rtol: float = 0.0


class Parity(_Part):
    """What the gate measured of one variant over one case, in the model's units."""

    case: str
    steps: int
    tolerance: Tolerance
    max_error: float  # the greatest absolute error of y
    at_step: int  # where
    passed: bool


class Variant(File):
    """One model file; `step` is the same model as a graph of one step, where that pays."""

    isolated: bool  # a row's result does not depend on the rows beside it, nor on chunking
    step: File | None = None
    parity: list[Parity]


class Lowering(_Part):
    """Which road one layer took from the user's module to the graphs, and why."""

    layer: str
    road: str
    why: str


class Provenance(_Part):
    """Where the artifact came from."""

    module: str  # MODULE:FACTORY
    call: str  # how the module is called, and where its axes lie
    weights_sha256: str
    example_sha256: str
    example_steps: int


class Manifest(_Part):
    """`manifest.json`."""

    schema_version: Literal[1]
    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=r"^[0-9a-f]{16}$")
    producer: dict[str, str]  # package -> version
    mode: Literal["causal", "windowed"]
    ports: Ports
    pipeline: Pipeline
    default_variant: VariantName
    variants: dict[VariantName, Variant]
    golden: File
    lowering: list[Lowering]
    provenance: Provenance

    @model_validator(mode="after")
    def _default_exists(self) -> "Manifest":
        if self.default_variant not in self.variants:
            raise ValueError(
                f"default_variant `{self.default_variant}` is not among {sorted(self.variants)}"
            )
        return self

    def to_json(self) -> str:
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def describe_file(path: Path) -> File:
    return File(file=path.name, sha256=sha256_file(path), size=path.stat().st_size)


def content_version(manifest: Manifest) -> str:
    """16 hex digits over what the model computes: not over parity, which is a measurement.

    What a manifest leaves out does not count, so that an optional key that a later Carousel adds
    does not change the version of what is there.
    """
    content = manifest.model_dump(
        mode="json",
        exclude_none=True,
        include={"schema_version", "name", "mode", "ports", "pipeline", "golden", "provenance"},
    )
    content["files"] = {
        name: [variant.sha256, variant.step.sha256 if variant.step else None]
        for name, variant in sorted(manifest.variants.items())
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Golden:
    """A few real sequences and the reference's answers, in the model's units.

    x (N, T, ...), y (N, T, ...) and the final states (N, ...), from the zero (or initial) state.
    """

    x: Array
    y: Array
    final: State


class StateLayout:
    """The states of one model as one safetensors blob per session.

    The safetensors header of a model never changes, so a blob is that header, then the raw
    little-endian values, and a batch of blobs is read as one structured array: stacking B
    states costs one join and one copy per state port, whatever B is.
    """

    def __init__(self, states: Sequence[StatePort]) -> None:
        # safetensors orders tensors by alignment, then by name (its spec leaves it open; its
        # own writer does so): int64 before float32.
        self.ports = sorted(states, key=lambda s: (-np.dtype(s.dtype).itemsize, s.name))
        self._header = self._make_header()
        self._row = np.dtype(
            [("header", f"V{len(self._header)}")]
            + [(s.name, np.dtype(s.dtype).newbyteorder("<"), self._shape(s)) for s in self.ports]
        )

    @staticmethod
    def _shape(port: StatePort) -> tuple[int, ...]:
        return tuple(int(dim) for dim in port.shape[1:])

    def _make_header(self) -> bytes:
        entries: dict[str, object] = {}
        offset = 0
        for port in self.ports:
            size = int(np.prod(self._shape(port))) * np.dtype(port.dtype).itemsize
            entries[port.name] = {
                "dtype": _SAFETENSORS_DTYPES[port.dtype],
                "shape": list(self._shape(port)),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the spec aligns the data at 8 bytes with spaces
        return len(text).to_bytes(8, "little") + text

    @property
    def size(self) -> int:
        """Bytes of one session's blob."""
        return self._row.itemsize

    def zeros(self) -> State:
        """The state of one fresh session: name -> (1, ...) zeros."""
        return {s.name: np.zeros((1, *self._shape(s)), s.dtype) for s in self.ports}

    def pack(self, state: State) -> list[bytes]:
        """name -> (B, ...) arrays -> B blobs, each a valid safetensors file."""
        batch = len(next(iter(state.values())))
        rows = np.empty(batch, self._row)
        rows["header"] = np.frombuffer(self._header, self._row["header"])[0]
        for port in self.ports:
            rows[port.name] = state[port.name]
        raw = rows.tobytes()
        return [raw[i : i + self.size] for i in range(0, len(raw), self.size)]

    def unpack(self, blobs: Sequence[bytes]) -> State:
        """B blobs -> name -> (B, ...) arrays, fresh and contiguous.

        Raises:
            ArtifactError: a blob is not of this layout. Its session belongs to another model.
        """
        for blob in blobs:
            if len(blob) != self.size or not blob.startswith(self._header):
                raise ArtifactError(
                    f"a stored state of {len(blob)} bytes does not fit this model's state ports, "
                    f"expected {self.size} bytes; drop the session"
                )
        rows = np.frombuffer(b"".join(blobs), self._row)
        return {s.name: np.ascontiguousarray(rows[s.name].astype(s.dtype)) for s in self.ports}


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk whose every file was found to be what the manifest says."""

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: Path) -> "Artifact":
        """Read and verify the artifact in directory `path`.

        Raises:
            ArtifactError: the manifest is missing, malformed or of another schema, or a file is
                missing or was changed. Export the model again, or fetch the artifact again.
        """
        manifest = _read_manifest(path)
        expected = content_version(manifest)
        if manifest.version != expected:
            raise ArtifactError(
                f"{path / MANIFEST} says version {manifest.version}, its content makes {expected}; "
                "it was changed after export; export the model again",
                artifact=str(path),
            )
        for what, file in _files(manifest).items():
            _verify(path, what, file)
        return cls(path, manifest)

    @cached_property
    def layout(self) -> StateLayout:
        return StateLayout(self.manifest.ports.states)

    def variant(self, name: str) -> Variant:
        """The entry of variant `name`; ArtifactError with the choices if there is none."""
        for known, variant in self.manifest.variants.items():
            if known == name:
                return variant
        raise ArtifactError(
            f"{self.manifest.name} has no variant `{name}`, "
            f"expected one of {sorted(self.manifest.variants)}"
        )

    def golden(self) -> Golden:
        tensors = load_file(self.path / self.manifest.golden.file)
        final = {s.name: tensors[s.output] for s in self.manifest.ports.states}
        return Golden(tensors["x"], tensors["y"], final)


def find_artifacts(root: Path) -> list[Path]:
    """Every NAME/VERSION/ directory under `root` that holds a manifest, sorted by path.

    Hidden ones do not count: an export that was killed may have left its working folder.
    """
    found = (path.parent for path in root.glob(f"*/*/{MANIFEST}"))
    return sorted(path for path in found if not path.name.startswith("."))


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    try:
        raw = json.loads(file.read_bytes())
    except OSError as error:
        raise ArtifactError(
            f"{file} cannot be read ({error.strerror}); expected an artifact directory "
            "NAME/VERSION/ as `python -m export` writes it",
            artifact=str(path),
        ) from error
    except ValueError as error:
        raise ArtifactError(
            f"{file} is not JSON ({error}); export the model again", artifact=str(path)
        ) from error
    found = raw.get("schema_version") if isinstance(raw, dict) else None
    if found != SCHEMA_VERSION:
        raise ArtifactError(
            f"{file} has schema_version {found}, this Carousel reads {SCHEMA_VERSION}; "
            "export the model again with this version",
            artifact=str(path),
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{file}: `{where}`: {first['msg']} ({error.error_count()} faults in all); "
            "export the model again",
            artifact=str(path),
        ) from error


def _files(manifest: Manifest) -> Mapping[str, File]:
    files: dict[str, File] = {"golden": manifest.golden}
    for name, variant in manifest.variants.items():
        files[name] = variant
        if variant.step:
            files[f"{name} (step)"] = variant.step
    return files


def _verify(path: Path, what: str, file: File) -> None:
    target = path / file.file
    if not target.is_file():
        raise ArtifactError(
            f"manifest names {file.file} for {what}, {path} has no such file; "
            "export the model again",
            artifact=str(path),
        )
    found = sha256_file(target)
    if found != file.sha256:
        raise ArtifactError(
            f"manifest says sha256 {file.sha256[:12]}... for {what} ({file.file}), the file has "
            f"{found[:12]}...; export the model again",
            artifact=str(path),
        )
