"""What the user brings: MODULE:FACTORY, a weights file, an example, perhaps a pipeline.

Export imports and runs the user's module (it must, to know what it computes); it never unpickles
code (`export/weights.py`).
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from pydantic import ValidationError
from torch import nn

from export.errors import SourceError
from export.user_code import describe
from export.weights import check_trained, give_weights
from service.errors import ClientError
from service.pipeline import EXPECTED, Pipeline


@dataclass(frozen=True)
class Source:
    """A trained module in eval mode with its example, as loaded."""

    spec: str  # MODULE:FACTORY
    module: nn.Module
    weights_sha256: str
    example: np.ndarray  # (N, T, ...) in the client's raw units
    pipeline: Pipeline
    notes: tuple[str, ...] = ()  # what was changed while loading, for the user to read

    @property
    def example_sha256(self) -> str:
        return sha256_array(self.example)


def sha256_array(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def load_source(
    spec: str,
    weights: Path | None,
    example: Path,
    pipeline: Path | None = None,
    arguments: Mapping[str, object] | None = None,
) -> Source:
    """Build the module, load its weights, read the example.

    Args:
        spec: MODULE:FACTORY; MODULE is importable from here, or a path to a .py file; FACTORY is a
            class or function that returns the module, or the module itself.
        weights: a state_dict in .safetensors, .pt or .pth; None: FACTORY gives the trained module.
        example: a .npy file of real input in raw units, (T, ...) or (N, T, ...); where the
            pipeline has a vocabulary, also a .txt file (UTF-8) of real text.
        pipeline: a JSON file of what stands before and after the module (`Pipeline`), or None.
        arguments: keywords for FACTORY.
    Raises:
        SourceError: one of them is missing, malformed, or does not fit the others.
    """
    factory = _find_factory(spec)
    module = _build(spec, factory, arguments or {})
    loaded, notes = give_weights(module, weights)
    again = None if factory is module else partial(_build, spec, factory, arguments or {})
    digest = check_trained(module, weights, loaded, again)
    declared = load_pipeline(pipeline)
    for value in module.parameters():  # a compiled module has no requires_grad_ of its own
        value.requires_grad_(False)
    return Source(
        spec,
        module.eval(),
        digest,
        load_example(example, declared),
        declared,
        tuple(notes),
    )


def _find_factory(spec: str) -> Callable[..., object]:
    """What FACTORY names: a module, or what makes one."""
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name:
        raise SourceError(f"got `{spec}`, expected MODULE:FACTORY, for example mynet:build")
    factory = getattr(_import(where), name, None)
    if factory is None:
        raise SourceError(f"{where} has no `{name}`; name a class, function or module that it has")
    if not callable(factory):  # a module is
        raise SourceError(f"`{spec}` is a {type(factory).__name__}, expected a class or function")
    found: Callable[..., object] = factory
    return found


def _build(spec: str, factory: Callable[..., object], arguments: Mapping[str, object]) -> nn.Module:
    if isinstance(factory, nn.Module):
        return factory
    try:
        module = factory(**arguments)
    except TypeError as error:
        raise SourceError(
            f"`{spec}` could not be called with {dict(arguments)}: {error}; "
            "give its arguments as JSON with --init, for example --init '{\"hidden_size\": 32}'"
        ) from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise SourceError(f"`{spec}` raised {describe(error)}; mend it, then export") from error
    if not isinstance(module, nn.Module):
        raise SourceError(f"`{spec}` returned {type(module).__name__}, expected a torch nn.Module")
    return module


def _import(where: str) -> ModuleType:
    try:
        if where.endswith(".py"):
            return _import_file(Path(where))
        return importlib.import_module(where)
    except (ImportError, FileNotFoundError) as error:
        raise SourceError(
            f"cannot import `{where}`: {error}; run from the folder that holds it, "
            "or give a path to the .py file"
        ) from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise SourceError(f"importing `{where}` raised {describe(error)}; mend it") from error


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickled names look their module up here
    sys.path.insert(0, str(path.resolve().parent))  # its neighbours, as `python FILE` would
    spec.loader.exec_module(module)
    return module


def load_example(path: Path, pipeline: Pipeline) -> np.ndarray:
    """The numbers of a .npy file, or the token ids of a .txt by the pipeline's vocabulary.

    Raises:
        SourceError: it cannot be read, or holds what no model can take.
    """
    return _load_text(path, pipeline) if path.suffix == ".txt" else _load_array(path)


def _load_array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise SourceError(f"example {path} does not exist; give real input as a .npy file")
    try:
        example = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise SourceError(
            f"example {path} is not a .npy file of numbers; "
            "write it with numpy.save from a plain float32 array"
        ) from error
    if not isinstance(example, np.ndarray) or example.dtype.kind not in "fiu":
        kind = example.dtype if isinstance(example, np.ndarray) else "several arrays"
        raise SourceError(
            f"example {path} does not hold numbers but {kind}; "
            "write one float32 array, or integer token ids, with numpy.save"
        )
    if example.ndim < 1 or example.size == 0:
        raise SourceError(f"example {path} has shape {example.shape}, expected (T, features)")
    if not np.isfinite(example).all():
        raise SourceError(f"example {path} holds NaN or infinity; give real, clean input")
    return example


def _load_text(path: Path, pipeline: Pipeline) -> np.ndarray:
    """The token ids (T,) int64 of a text."""
    if pipeline.tokens is None:
        raise SourceError(
            f"example {path} is text, for which the pipeline must declare its `vocabulary` "
            "(--pipeline); or give token ids as a .npy file"
        )
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"example {path} cannot be read as UTF-8 text: {error}") from error
    try:
        ids = pipeline.tokens.ids_of(text)
    except ClientError as error:
        raise SourceError(f"example {path}: {error.message}") from error
    if not len(ids):
        raise SourceError(f"example {path} is empty; give real text")
    return ids


def load_pipeline(path: Path | None) -> Pipeline:
    """The pipeline of a .json file; None: there is none.

    Raises:
        SourceError: it cannot be read, or says something else than a pipeline may.
    """
    if path is None:
        return Pipeline()
    try:
        return Pipeline.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SourceError(f"pipeline {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "file"
        said = first["msg"].removeprefix("Value error, ")
        raise SourceError(f"pipeline {path}: `{where}`: {said}; {EXPECTED}") from error
