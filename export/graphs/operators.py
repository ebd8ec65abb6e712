"""The general road: any step, operator by operator, with its matrix products quantized.

What the affine form cannot say (an exp, a division, a maximum, a norm, a convolution) is taken as
torch.export and torch.onnx see it. The same ports and the same proof as on the other road.
"""

from collections.abc import Mapping, Set

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.export import ExportedProgram

from export.errors import LoweringError
from export.graphs.bounds import Bounds, bounded_states, picked_from_x
from export.graphs.int8_step import find_products, write_int8_graphs
from export.graphs.scan import write_graphs
from export.graphs.session import start_session
from export.graphs.step_code import StepCode
from export.graphs.step_model import StepModel, as_onnx, read_step_model
from export.graphs.step_program import ProgramStep, export_step, to_onnx
from export.lowered import Graphs, Lowered
from export.precision import Plan
from export.reference import Reference, State
from service.manifest import Lowering, Ports

Array = np.ndarray
CHECK_BATCHES = (1, 2, 7)  # none of them what the step was exported with
CHECK_SCALES = (1.0, 30.0, 1e4)  # ordinary, saturating, extreme input
CHECK_STEPS = 4
TOLERANCE = 1e-5
NUDGE = 1e-6  # some eight roundings of float32
NUDGES = 8  # as many nudges as another order of rounding may differ by


class LoweredOperators(Lowered):
    """A step as ONNX operators, and as torch's own where it came from torch."""

    def __init__(
        self,
        model: StepModel,
        bounds: Bounds,
        ids: int | None,
        why: str,
        program: ExportedProgram | None,
    ) -> None:
        self.model = model
        self._bounds = bounds
        self._ids = ids
        self._why = why
        self._program = program

    @property
    def ids(self) -> int | None:
        return self._ids

    @property
    def bounded_states(self) -> Set[str]:
        return self._bounds.states

    def roads(self, module: str) -> list[Lowering]:
        count = len(self.model.nodes)
        why = f"{self._why}; written as {count} operators, equal to a step of {module} in float32"
        return [Lowering(layer="the step", road="general", why=why)]

    def float_graphs(self, ports: Ports) -> Graphs:
        return write_graphs(self.model, ports)

    @property
    def layers(self) -> Mapping[str, int]:
        products = find_products(self.model, self._bounds)
        return {product.layer: product.int8_weights for product in products.values()}

    def rowwise_graphs(self, ports: Ports, plan: Plan) -> Graphs:
        return write_int8_graphs(self.model, self._bounds, ports, plan)

    def torch_module(self, ports: Ports) -> nn.Module:
        return StepCode(self._torch_program())

    def torch_step(self, ports: Ports) -> nn.Module:
        return ProgramStep(self._torch_program())

    def _torch_program(self) -> ExportedProgram:
        if self._program is None:
            raise LoweringError("the model came as an ONNX graph: there is no torch module")
        return self._program


def lower_operators(reference: Reference, x: Tensor, why: str) -> LoweredOperators:
    """Lower one step of `reference` operator by operator; x (N, T, ...) is the example.

    Args:
        why: what kept it from the other road.
    Raises:
        LoweringError: an operation has no translation, or rows of the batch meet.
    """
    check_rows_apart(reference, x)
    program = export_step(reference, x)
    names = tuple(spec.name for spec in reference.states)
    model = onnx.load_model_from_string(to_onnx(program, names))
    return from_step_model(model, reference, x, why, program)


def from_step_model(
    model: onnx.ModelProto,
    reference: Reference,
    x: Tensor,
    why: str,
    program: ExportedProgram | None = None,
) -> LoweredOperators:
    """What is made of an ONNX graph of one step: x (B, ...), `NAME_0` -> y, `NAME_n`.

    Args:
        reference: what the graph is held against.
        x: (N, T, ...) the example: its features, its dtype, its ids.
        program: the same step as torch has it; None: there will be no TorchScript variant.
    Raises:
        LoweringError: the graph is not the reference's step, or is of another kind than expected.
    """
    states = [spec.name for spec in reference.states]
    step = read_step_model(model, states)
    initial = {name: value.numpy() for name, value in reference.initial(1).items()}
    ids = picked_from_x(step) if x.dtype == torch.int64 else None
    bounds = bounded_states(step, initial)
    check_step(step, reference, x, ids)
    return LoweredOperators(step, bounds, ids, why, program)


def check_rows_apart(reference: Reference, x: Tensor) -> None:
    """A row's result must not move with the rows beside it.

    Raises:
        LoweringError: it does.
    """
    batch = 4
    draw = _Draw(x, None)
    first = draw(batch, 1.0)
    second = draw(batch, 1e3)
    second[0] = first[0]
    with torch.no_grad():
        _, states = reference.run(draw(batch, 1.0).unsqueeze(1), reference.initial(batch))
        others = {n: torch.cat([s[:1], s[1:].flip(0)]) for n, s in states.items()}
        alike = reference.run(first.unsqueeze(1), states)
        moved = reference.run(second.unsqueeze(1), others)
    for name, one, other in _paired(alike, moved):
        excess = _excess(other[:1], one[:1])
        if not excess <= 1:
            raise LoweringError(
                f"`{name}` of a row moves with the rows beside it: rows of the batch meet in a "
                "step, so sessions could not be served apart"
            )


def check_step(step: StepModel, reference: Reference, x: Tensor, ids: int | None) -> None:
    """Run the step under ONNX Runtime beside the reference, at batches that it has not seen.

    They may differ by `TOLERANCE`, and by what the reference itself moves when its input and state
    are nudged by a few roundings: that is what another order of adding up may do.

    Raises:
        LoweringError: they differ.
    """
    session = _open(step, reference, x)
    outputs = ["y", *(f"{spec.name}_n" for spec in reference.states)]
    draw = _Draw(x, ids)
    for scale in CHECK_SCALES:
        for batch in CHECK_BATCHES:
            states = reference.initial(batch)
            for _ in range(CHECK_STEPS):
                given = draw(batch, scale)
                feed = {"x": given.numpy(), **{f"{n}_0": s.numpy() for n, s in states.items()}}
                y, *new = (torch.from_numpy(v) for v in session.run(outputs, feed))
                with torch.no_grad():
                    wanted = reference.run(given.unsqueeze(1), states)
                    nudged = reference.run(*draw.nudge(given.unsqueeze(1), states))
                slack = {name: _row_slack(a, b) for name, a, b in _paired(nudged, wanted)}
                found = y.unsqueeze(1), dict(zip(states, new, strict=True))
                for name, ours, theirs in _paired(found, wanted):
                    excess = _excess(ours, theirs, slack[name])
                    if not excess <= 1:
                        raise LoweringError(
                            f"the step's graph gives another `{name}` than {reference.name}, at "
                            f"batch {batch} and input of scale {scale:g}: {excess:.1e} times what "
                            "float32 rounding allows. The module's code looks at the values or "
                            "the batch of its input, and takes another way there"
                        )
                states = wanted[1]


class _Draw:
    """Random input of one step, as the example's."""

    def __init__(self, x: Tensor, ids: int | None) -> None:
        self._x = x
        self._ids = ids
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, batch: int, scale: float) -> Tensor:
        shape = (batch, *self._x.shape[2:])
        if not self._x.is_floating_point():
            if self._ids is not None:
                return torch.randint(0, self._ids, shape, generator=self._generator)
            rows = self._x.reshape(-1, *self._x.shape[2:])
            return rows[torch.randint(0, len(rows), (batch,), generator=self._generator)]
        return scale * torch.randn(shape, generator=self._generator)

    def nudge(self, x: Tensor, states: State) -> tuple[Tensor, State]:
        """The same, off by a few roundings."""
        return self._nudged(x), {name: self._nudged(value) for name, value in states.items()}

    def _nudged(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        return value * (1 + NUDGE * torch.randn(value.shape, generator=self._generator).sign())


def _paired(
    ours: tuple[Tensor, State], theirs: tuple[Tensor, State]
) -> list[tuple[str, Tensor, Tensor]]:
    return [("y", ours[0], theirs[0]), *((n, ours[1][n], theirs[1][n]) for n in theirs[1])]


def _row_slack(nudged: Tensor, wanted: Tensor) -> Tensor:
    """How far a nudge moved each row, at most: (B, 1, ...)."""
    moved = (nudged.double() - wanted.double()).abs().nan_to_num(0.0, 0.0)
    if moved.ndim == 1:
        return moved
    return moved.amax(dim=tuple(range(1, moved.ndim)), keepdim=True)


def _excess(ours: Tensor, theirs: Tensor, slack: Tensor | None = None) -> float:
    """|ours - theirs| in units of what is allowed; infinities must be the same."""
    a, b = ours.double(), theirs.double()
    if a.shape != b.shape:
        return float("inf")
    difference = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
    allowed = TOLERANCE * (1 + b.abs()) + (0.0 if slack is None else NUDGES * slack)
    worst = (difference / allowed).max()
    return float("inf") if worst.isnan() else float(worst)


def _open(step: StepModel, reference: Reference, x: Tensor) -> ort.InferenceSession:
    def kind(value: Tensor) -> int:
        return TensorProto.FLOAT if value.is_floating_point() else TensorProto.INT64

    kinds: dict[str, int] = {"x": kind(x), "y": TensorProto.FLOAT}
    for name, value in reference.initial(1).items():
        kinds |= {f"{name}_0": kind(value), f"{name}_n": kind(value)}
    model = as_onnx(step, kinds)
    try:
        return start_session(model)
    except Exception as error:  # its exceptions share no base but Exception
        raise LoweringError(f"ONNX Runtime does not take the step's graph: {error}") from error
