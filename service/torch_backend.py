"""A variant under torch: the only module of `service` that needs torch, and only once used."""

import warnings
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from service.artifact import Array, Artifact
from service.errors import ArtifactError, EngineMissingError
from service.layout import State
from service.manifest import Variant


class TorchBackend(ABC):
    """`forward(x, *states) -> (y, *states')`, over all steps of every row.

    The module takes no lengths, so rows of equal length run together.
    """

    def __init__(self, artifact: Artifact, variant: Variant, threads: int) -> None:
        written_by = artifact.manifest.producer.get("torch", "2.13.0")
        try:
            import torch
        except ImportError as error:
            raise EngineMissingError(
                f"{variant.file} needs torch, which is not installed here; "
                f"install torch=={written_by} or choose an ONNX variant",
                package="torch",
            ) from error
        torch.set_num_threads(threads)
        self._torch = torch
        self.engine = f"torch {torch.__version__}"
        self._names = [port.name for port in artifact.manifest.ports.states]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what torch will drop; see export
                self._module = self._load(torch, str(artifact.path / variant.file))
        except Exception as error:  # torch's loaders share no base but Exception
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ArtifactError(
                f"torch {torch.__version__} cannot load {variant.file}, which torch {written_by} "
                f"wrote: {reason}; install that torch or choose an ONNX variant"
            ) from error

    @abstractmethod
    def _load(self, torch: Any, path: str) -> Any:
        """The callable in the file at `path`, by the given torch."""

    def run(self, x: Array, state: State, lengths: Array) -> tuple[Array, State]:
        if lengths.min() == x.shape[1]:  # as a row does that runs alone, step by step: no copies
            y, final = self._forward(x, state)
        else:
            y, final = self._by_length(x, state, lengths)
        # One zero, as of every backend: a row's y past its length is 0.0.
        return y + 0, {name: value + 0 for name, value in final.items()}

    def _by_length(self, x: Array, state: State, lengths: Array) -> tuple[Array, State]:
        y: Array | None = None
        final = {name: np.empty_like(value) for name, value in state.items()}
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            part, part_state = self._forward(
                x[rows, :length], {name: value[rows] for name, value in state.items()}
            )
            if y is None:
                y = np.zeros((*x.shape[:2], *part.shape[2:]), part.dtype)
            y[rows, :length] = part
            for name, value in part_state.items():
                final[name][rows] = value
        if y is None:
            raise ArtifactError("an empty batch reached the torch runtime")
        return y, final

    def _forward(self, x: Array, state: State) -> tuple[Array, State]:
        torch = self._torch
        with torch.inference_mode():
            y, *states = self._module(
                torch.from_numpy(np.ascontiguousarray(x)),
                *(torch.from_numpy(np.ascontiguousarray(state[name])) for name in self._names),
            )
        return y.numpy(), {n: s.numpy() for n, s in zip(self._names, states, strict=True)}
