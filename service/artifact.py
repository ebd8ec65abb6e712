"""The artifact: a directory NAME/VERSION/ that holds one model, proven and sealed.

Rules
- `manifest.json` says everything; a file that it does not name does not count.
- Every file that it names carries its sha256 and is verified when the artifact is loaded.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from service.errors import ArtifactError
from service.layout import State, StateLayout
from service.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    File,
    Manifest,
    Variant,
    content_version,
    sha256_file,
)

Array = np.ndarray


@dataclass(frozen=True)
class Golden:
    """A few real sequences and the reference's answers, in the model's units.

    x (N, T, ...), y (N, T, ...) and the final states (N, ...), from the initial state.
    """

    x: Array
    y: Array
    final: State


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

    @cached_property
    def initial(self) -> State:
        """The state of one session that has not begun: name -> (1, ...); zeros if not stored."""
        if self.manifest.initial is None:
            return self.layout.zeros()
        tensors = load_file(self.path / self.manifest.initial.file)
        return {s.name: tensors[s.input] for s in self.manifest.ports.states}

    def golden(self) -> Golden:
        """The golden sequences; ArtifactError if the file cannot be read."""
        file = self.path / self.manifest.golden.file
        try:
            tensors = load_file(file)
            final = {s.name: tensors[s.output] for s in self.manifest.ports.states}
            return Golden(tensors["x"], tensors["y"], final)
        except (KeyError, SafetensorError) as error:
            raise ArtifactError(
                f"{file} cannot be read ({error}); export the model again",
                artifact=str(self.path),
            ) from error


def find_artifacts(root: Path) -> list[Path]:
    """Every NAME/VERSION/ directory under `root` that holds a manifest, sorted by path.

    Hidden ones do not count: an export that was killed may have left its working folder.
    """
    found = (path.parent for path in root.glob(f"*/*/{MANIFEST}"))
    return sorted(path for path in found if not path.name.startswith("."))


def newest_artifacts(paths: Iterable[Path]) -> list[Path]:
    """Of artifact directories NAME/VERSION/ the one of each name that was written last."""
    newest: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: (path / MANIFEST).stat().st_mtime_ns):
        newest[path.parent.name] = path
    return sorted(newest.values())


def locate_artifact(path: Path) -> Path:
    """An artifact directory as it is; of a NAME/ directory its newest version, if it has any."""
    if path.is_dir() and not (path / MANIFEST).exists():
        found = (p.parent for p in path.glob(f"*/{MANIFEST}") if not p.parent.name.startswith("."))
        return next(iter(newest_artifacts(found)), path)
    return path


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
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ArtifactError(
            f"{file}: `{where}`: {first['msg']} ({error.error_count()} faults in all); "
            "export the model again",
            artifact=str(path),
        ) from error


def _files(manifest: Manifest) -> Mapping[str, File]:
    files: dict[str, File] = {"golden": manifest.golden}
    if manifest.initial:
        files["initial"] = manifest.initial
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
