"""`manifest.json`: what an artifact says of itself, as frozen models that refuse unknown keys.

Rules
- Batch is axis 0 of every port, states included.
- The version is derived from the content (`content_version`): same module, same example, same
  bytes give the same version on the same machine and library versions.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.pipeline import Pipeline

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"  # what BentoML's tags take, too

Dim = int | str  # a size, or "B" / "T" where it is free
Dtype = Literal["float32", "int64"]
Precision = Literal["rowwise", "weights", "float"]
VariantName = Literal[
    "onnx-fp32",
    "onnx-int8",
    "onnx-int8-rowwise",
    "torchscript-fp32",
    "torchscript-int8",
    "torch-export",
]

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


class Metric(_Part):
    """How well a variant does its task beside the reference."""

    name: str
    unit: str
    reference: float
    variant: float
    worsening: float  # of an error, as a share of the reference's; of a share, the difference
    allowed: float
    passed: bool


class Parity(_Part):
    """What the gate measured of one variant over one case, in the model's units."""

    case: str
    steps: int
    tolerance: Tolerance
    max_error: float  # the greatest absolute error of y over the judged steps
    at_step: int  # where
    passed: bool
    judged_steps: int | None = None  # the first ones, whose errors are judged; None: all
    why: str | None = None  # the tolerance is what it is
    share_of_spread: float | None = None  # the greatest error / its output's standard deviation
    diverges: bool | None = None  # a long run without a lead leaves the reference's; None: not run
    metrics: list[Metric] = []


class Variant(File):
    """One model file; `step` is the same model as a graph of one step, where that pays."""

    isolated: bool  # a row's result does not depend on the rows beside it, nor on chunking
    step: File | None = None
    parity: list[Parity]
    precision: dict[str, Precision] | None = None  # of each layer that can be int8, as was chosen


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
    initial: File | None = None  # of the states, where a session does not begin with zeros
    lowering: list[Lowering]
    provenance: Provenance

    @model_validator(mode="after")
    def _default_exists(self) -> "Manifest":
        if self.default_variant not in self.variants:
            raise ValueError(
                f"default_variant `{self.default_variant}` is not among {sorted(self.variants)}"
            )
        return self

    @model_validator(mode="after")
    def _pipeline_fits(self) -> "Manifest":
        if misfit := self.pipeline.misfit(self.ports.x, self.ports.y):
            raise ValueError(misfit)
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
        include={
            *("schema_version", "name", "mode", "ports"),
            *("pipeline", "golden", "initial", "provenance"),
        },
    )
    content["files"] = {
        name: [variant.sha256, variant.step.sha256 if variant.step else None]
        for name, variant in sorted(manifest.variants.items())
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
