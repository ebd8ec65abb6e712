"""Who takes part in process: Carousel's variants, what a user would run instead, and the floor.

Rules
- Every contestant carries its own state from call to call, as a stream does; x stays the same.
- A variant runs as the service runs it: what is not isolated, one row and one step a call.
- The others are called as their documentation shows, with as many threads as ours: torch eager
  (inference mode), TorchScript (traced, frozen), ONNX Runtime on what `torch.onnx.export` writes,
  the same after `quantize_dynamic`, OpenVINO on that file (latency hint, float32: by default it
  computes in bfloat16 where the CPU can).
- Who cannot take part is named, with the reason.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from benchmarks.floor import floor_calls
from benchmarks.latency.point import Model
from benchmarks.latency.torchscript import traced
from benchmarks.latency.turns import Call
from benchmarks.stock import open_stock, write_stock_graph, write_stock_int8
from service.artifact import Artifact
from service.layout import State
from service.runtime import Runtime

Array = np.ndarray
EAGER, TORCHSCRIPT = "torch eager", "TorchScript"
STOCK, STOCK_INT8 = "ONNX Runtime", "ONNX Runtime int8"
OPENVINO = "OpenVINO"
FLOOR, READING = "floor: product", "floor: reading weights"
FLOORS = (FLOOR, READING)
PEERS = (EAGER, TORCHSCRIPT, STOCK, STOCK_INT8, OPENVINO)
READERS = ("dot", "max")  # of `floor_calls`: they read the weights and multiply nothing else
GATES = {"lstm": 4, "gru": 3}
CALLS = ("X, (h, c)=None -> Y, (h, c)", "X, h=None -> Y, h")  # that can be called from here
TIME_FIRST = "X is (time, batch"

Opener = Callable[[Array, State], Call]  # x (B, T, ...), state name -> (B, ...) -> one call


class Contestants:
    """All that can run one model, bound to a batch at a time."""

    def __init__(
        self,
        artifact: Artifact,
        model: Model,
        module: nn.Module | None,
        variants: Sequence[str],
        threads: int,
        folder: Path,
    ) -> None:
        """
        Args:
            module: the artifact's, as it was trained or alike; None: only variants take part.
            folder: where the peers' files may lie while they are used.
        """
        self.absent: dict[str, str] = {}  # peer -> why
        self._artifact = artifact
        self._model = model
        self._module = module
        self._threads = threads
        self._folder = folder
        self._variants = {n: _variant(Runtime(artifact, n, threads)) for n in variants}
        self._peers: dict[int, dict[str, Opener]] = {}  # steps -> theirs

    def calls(self, rows: int, steps: int) -> dict[str, Call]:
        """One call of each on `rows` rows of `steps` steps, giving y; floors as `FLOOR (library)`.

        A peer that cannot be opened, or fails in its first call, is in `absent` then.
        """
        x, state = batch_of(self._artifact, rows, steps)
        calls = {name: opener(x, state) for name, opener in self._variants.items()}
        if steps not in self._peers:
            self._peers[steps] = self._open_peers(steps)
        for name, opener in self._peers[steps].items():
            with self._excused(name):
                call = opener(x, state)
                call()
                calls[name] = call
        gates = GATES.get(self._model.kind)
        if gates and self._model.layers == 1:
            sizes = (rows, self._model.input_size, self._model.hidden)
            for library, call in floor_calls(*sizes, steps, gates).items():
                floor = READING if library in READERS else FLOOR
                calls[f"{floor} ({library})"] = call
        return calls

    def _open_peers(self, steps: int) -> dict[str, Opener]:
        """Traced over as many steps as are timed: a module with a loop of its own unrolls it."""
        if self._module is None:
            return {}
        module, threads = self._module, self._threads
        x, state = batch_of(self._artifact, 2, steps)
        given = torch.from_numpy(x), _as_torch(state)
        stock, stock_int8 = (self._folder / f"{name}-{steps}.onnx" for name in ("fp32", "int8"))
        makers: Mapping[str, Callable[[], Opener]] = {
            EAGER: lambda: _torch(module),
            TORCHSCRIPT: lambda: _torch(traced(module, given[0], _packed(given[1]))),
            STOCK: lambda: _stock(_written(module, *given, stock), threads),
            STOCK_INT8: lambda: _stock(_quantized(stock, stock_int8), threads),
            OPENVINO: lambda: _openvino(stock, threads),
        }
        openers = {}
        for name, make in makers.items():
            with self._excused(name):
                openers[name] = make()
        return openers

    @contextmanager
    def _excused(self, name: str) -> Iterator[None]:
        try:
            yield
        except ModuleNotFoundError as error:
            self.absent[name] = f"{error.name} is not installed; pip install {error.name}"
        except Exception as error:  # another package's, or of the user's module: any
            self.absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]


def batch_of(artifact: Artifact, rows: int, steps: int) -> tuple[Array, State]:
    """x (rows, steps, ...) of golden input and the states that golden sequences end in."""
    golden = artifact.golden()
    x = np.resize(golden.x, (rows, steps, *golden.x.shape[2:]))
    return x, {n: np.resize(v, (rows, *v.shape[1:])) for n, v in golden.final.items()}


def module_of(artifact: Artifact) -> nn.Module:
    """The module as its user builds it: not its trained weights, which change no time.

    Raises:
        LookupError: it cannot be built, or not be called, from here; the message says why.
    """
    provenance = artifact.manifest.provenance
    if not provenance.call.startswith(CALLS) or TIME_FIRST in provenance.call:
        raise LookupError(
            f"its module is called `{provenance.call}`, expected {' or '.join(CALLS)}"
        )
    where, _, factory = provenance.module.rpartition(":")
    try:
        module = getattr(import_module(where), factory)()
    except Exception as error:  # whatever the user's code raises
        raise LookupError(f"`{provenance.module}` cannot be built here: {error}") from error
    if not isinstance(module, nn.Module):
        raise LookupError(f"`{provenance.module}` gives {type(module).__name__}, not a module")
    return module.eval()


def _variant(runtime: Runtime) -> Opener:
    def bind(x: Array, state: State) -> Call:
        def call() -> Array:
            nonlocal state
            y, state = runtime.run(x, state)
            return y

        return call

    return bind


def _as_torch(state: State) -> dict[str, Tensor]:
    """As a module takes it: (B, L, H) of the artifact is (L, B, H) there."""
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    return {
        name: value.transpose(0, 1).contiguous() if value.ndim == 3 else value
        for name, value in tensors.items()
    }


def _torch(module: Callable[..., Any]) -> Opener:
    def bind(x: Array, state: State) -> Call:
        given, held = torch.from_numpy(x), _packed(_as_torch(state))

        def call() -> object:
            nonlocal held
            with torch.inference_mode():
                y, held = module(given, held)
            return y

        return call

    return bind


def _packed(state: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
    values = tuple(state.values())
    return values if len(values) > 1 else values[0]


def _written(module: nn.Module, x: Tensor, state: Mapping[str, Tensor], path: Path) -> Path:
    write_stock_graph(module, x, state, path)
    return path


def _quantized(stock: Path, path: Path) -> Path:
    write_stock_int8(stock, path)
    return path


def _stock(path: Path, threads: int) -> Opener:
    session: InferenceSession = open_stock(path, threads)

    def bind(x: Array, state: State) -> Call:
        feed = {"x": x, **{name: value.numpy() for name, value in _as_torch(state).items()}}
        names = [name for name in feed if name != "x"]

        def call() -> object:
            y, *states = session.run(None, feed)
            feed.update(zip(names, states, strict=True))
            return y

        return call

    return bind


def _openvino(path: Path, threads: int) -> Opener:
    """It is optional: ModuleNotFoundError where it is not installed."""
    openvino = import_module("openvino")
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)

    def bind(x: Array, state: State) -> Call:
        feed = {"x": x, **{name: value.numpy() for name, value in _as_torch(state).items()}}
        names = [name for name in feed if name != "x"]
        request = compiled.create_infer_request()  # one for each shape: it is fitted to it

        def call() -> object:
            found = request.infer(feed, share_inputs=True)
            feed.update({name: found[f"{name}_n"] for name in names})
            return found["y"]

        return call

    return bind
