"""An ONNX file's step in Carousel's ports: x (B, ...), `NAME_0` -> y, `NAME_n`, any batch.

The file's own nodes, with what turns our axes into its and back around them. Where the file is
fixed at a batch, that number is taken out of it: proposals are made until one gives, at several
batches, what the original gives row by row. If none does, the rows run one after another inside
the graph.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import LoweringError
from export.graphs.folding import fold_constants
from export.graphs.graph_builder import IR_VERSION, MICROSOFT, OPSET, GraphBuilder
from export.graphs.naming import prefixed
from export.graphs.session import start_session
from export.onnx_in.cells import unroll_cells
from export.onnx_in.finding import is_close, random_state, y_axes
from export.onnx_in.opset import at_our_opset
from export.onnx_in.reference import ArrayState, Axes, FileCall, OnnxReference
from export.onnx_in.shapes import FREE, with_input_sizes, without_size
from export.onnx_in.source import Array, FileValue, OnnxModel
from export.onnx_in.types import as_float32

PREFIX = "file/"
ROWS = "rows"
CHECK_BATCHES = (1, 2, 3)
Run = Callable[[Array, ArrayState], tuple[Array, ArrayState]]
ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
}


def write_step(reference: OnnxReference, example: Array) -> tuple[onnx.ModelProto, str]:
    """The step graph of a file, and how it came about, in words.

    Args:
        example: (N, T, ...), what x may be.
    Raises:
        LoweringError: no graph was found that computes what the file does.
    """
    call = reference.call
    proto = at_our_opset(call.single.proto, call.model.name)
    as_float32(proto.graph)
    sizes = {} if call.x.time is None else {(call.binding.x, call.x.time): 1}
    proto = with_input_sizes(proto, sizes)
    probe = example.reshape(-1, 1, *example.shape[2:])[: max(CHECK_BATCHES)]
    probe = probe[np.arange(max(CHECK_BATCHES)) % len(probe)]
    states = tuple(replace(s, dtype="float32" if s.is_float else s.dtype) for s in call.states)
    ours = replace(call, states=states, model=OnnxModel(call.model.name, proto))
    if call.rows is None:
        step = _around(replace(ours, single=ours.model), reference, probe)
        if fault := _fault(step, call, probe):
            raise LoweringError(f"{call.model.name}: its step in our ports differs: {fault}")
        return step, "the file's own operators"
    faults: list[str] = []
    for found in _free_rows(ours, call.run, probe, faults):
        step = _around(found, reference, probe)
        if not (fault := _fault(step, call, probe)):
            return step, f"the file's own operators, its batch of {call.rows} made free"
        faults.append(fault)
    if call.rows == 1:
        step = _row_by_row(ours, reference, probe)
        if not (fault := _fault(step, call, probe)):
            return step, "the file's own operators, row by row: its batch of 1 is baked in"
        faults.append(fault)
    tried = "; ".join(dict.fromkeys(faults)) or "no axis of x and of each state can be the batch's"
    raise LoweringError(
        f"{call.model.name} is fixed at {call.rows} rows and could not be freed ({tried}); export "
        "it with a dynamic batch axis"
    )


def _free_rows(
    call: FileCall, original: Run, probe: Array, faults: list[str]
) -> Iterator[FileCall]:
    """Ways to run copies whose batch is free that give what the file gives row by row."""
    x = [call.x]
    if call.x.time is not None and call.steps == 1 == call.rows:
        x.append(Axes(call.x.time, call.x.batch))  # both are of size 1 in the file
    shapes = {v.name: v.shape for v in call.model.inputs}
    places = [
        [
            replace(s, axes=Axes(axis, None))
            for axis, size in enumerate(shapes[s.bound.input])
            if size == call.rows
        ]
        for s in call.states
    ]
    state = random_state(call, len(probe))
    wanted = original(probe, state)
    for axes, states in itertools.product(x, itertools.product(*places)):
        if axes.batch is None:
            continue
        free = {(call.binding.x, axes.batch): ROWS}
        free |= {(s.bound.input, s.axes.batch): ROWS for s in states if s.axes.batch is not None}
        for copy in without_size(with_input_sizes(call.model.proto, free), call.rows or 1, FREE):
            model = OnnxModel(call.model.name, copy)
            found = replace(
                call, model=model, single=model, x=axes, states=states, rows=None, steps=1
            )
            try:
                found = replace(found, y=y_axes(found, probe, state))
                y, new = found.run(probe, state)
            except Exception as error:  # ONNX Runtime has no common base for what it raises
                faults.append(str(error).splitlines()[0])
                continue
            if is_close(y, wanted[0]) and all(is_close(new[n], wanted[1][n]) for n in new):
                yield found


def _fault(step: onnx.ModelProto, call: FileCall, probe: Array) -> str:
    """How the step differs from the file, at several batches; empty: not at all."""
    try:
        session = start_session(step)
        for batch in CHECK_BATCHES:
            state = random_state(call, batch)
            for _ in range(2):
                feeds = {f"{name}_0": value for name, value in state.items()}
                wanted_y, wanted = call.run(probe[:batch], state)
                names = ["y", *(f"{name}_n" for name in state)]
                y, *new = session.run(names, {"x": probe[:batch, 0], **feeds})
                found = dict(zip(state, new, strict=True))
                if not is_close(y, wanted_y[:, 0].astype(y.dtype)):
                    return f"y is another at batch {batch}"
                for name, value in found.items():
                    if not is_close(value, wanted[name].astype(value.dtype)):
                        return f"state `{name}` is another at batch {batch}"
                state = found
    except Exception as error:  # ONNX Runtime has no common base for what it raises
        return str(error).splitlines()[0]
    return ""


def _around(call: FileCall, reference: OnnxReference, probe: Array) -> onnx.ModelProto:
    """The canonical step graph around the nodes of `call.single`, whose batch is free."""
    inner = prefixed(call.single.proto, PREFIX)
    ins = {value.name: value for value in call.model.inputs}
    g = GraphBuilder()
    kinds = probe.dtype.name, ins[call.binding.x].dtype
    _enter(g, "x", call.binding.x, call.x, probe.ndim - 1, kinds)
    for s in call.states:
        kinds = _border(s.is_float), s.dtype
        _enter(g, f"{s.spec.name}_0", s.bound.input, s.axes, 1 + len(s.spec.shape), kinds)
    for name, number in call.binding.constants:
        _give(g, ins[name], number)
    g.nodes.extend(inner.graph.node)
    y_rank = 1 + len(_y_shape(reference, probe))
    _leave(g, call.binding.y, "y", call.y, y_rank, "float32")
    for s in call.states:
        rank = 1 + len(s.spec.shape)
        _leave(g, s.bound.output, f"{s.spec.name}_n", s.axes, rank, _border(s.is_float))
    return _finished(g, inner, reference, probe)


def _row_by_row(call: FileCall, reference: OnnxReference, probe: Array) -> onnx.ModelProto:
    """The canonical step graph as a Scan over the rows, its body the file's nodes at one row."""
    inner = prefixed(call.model.proto, PREFIX)
    ins = {value.name: value for value in call.model.inputs}
    g = GraphBuilder()
    shapes = {call.binding.x: call.x.to_file(probe[:1]).shape}
    shapes |= {
        s.bound.input: s.axes.to_file(np.zeros((1, 1, *s.spec.shape))).shape for s in call.states
    }
    for name, number in call.binding.constants:
        sizes = tuple(1 if not isinstance(dim, int) else dim for dim in ins[name].shape)
        _give(g, replace(ins[name], shape=sizes), number)
    ports = [("x", call.binding.x, probe.dtype.name)]
    ports += [(f"{s.spec.name}_0", s.bound.input, _border(s.is_float)) for s in call.states]
    body: list[onnx.NodeProto] = []
    for port, name, _ in ports:
        cast = f"{port}_row_cast"
        kind = ELEMENTS[ins[name].dtype]
        body.append(helper.make_node("Cast", [f"{port}_row"], [cast], to=kind))
        shape = g.ints(*shapes[name])
        body.append(helper.make_node("Reshape", [cast, shape], [PREFIX + name]))
    body.extend(inner.graph.node)
    y_shape = _y_shape(reference, probe)
    results = [("y", call.binding.y, TensorProto.FLOAT, y_shape)]
    results += [
        (f"{s.spec.name}_n", s.bound.output, ELEMENTS[_border(s.is_float)], s.spec.shape)
        for s in call.states
    ]
    for port, name, kind, row in results:
        flat = f"{port}_row_flat"
        body.append(helper.make_node("Reshape", [PREFIX + name, g.ints(*row)], [flat]))
        body.append(helper.make_node("Cast", [flat], [f"{port}_row"], to=kind))
    rows = {"x": probe.shape[2:]} | {f"{s.spec.name}_0": s.spec.shape for s in call.states}
    graph = helper.make_graph(
        body,
        "row",
        [
            helper.make_tensor_value_info(f"{port}_row", ELEMENTS[dtype], rows[port])
            for port, _, dtype in ports
        ],
        [helper.make_tensor_value_info(f"{p}_row", kind, row) for p, _, kind, row in results],
    )
    g.nodes.append(
        helper.make_node(
            "Scan",
            [port for port, *_ in ports],
            [port for port, *_ in results],
            body=graph,
            num_scan_inputs=len(ports),
        )
    )
    return _finished(g, inner, reference, probe)


def _finished(
    g: GraphBuilder, inner: onnx.ModelProto, reference: OnnxReference, probe: Array
) -> onnx.ModelProto:
    initial = {name: value.numpy() for name, value in reference.initial(1).items()}

    def info(name: str, kind: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, ELEMENTS[kind], ["B", *shape])

    shapes = {name: (value.dtype.name, value.shape[1:]) for name, value in initial.items()}
    inputs = [info("x", probe.dtype.name, probe.shape[2:])]
    inputs += [info(f"{name}_0", *kind) for name, kind in shapes.items()]
    outputs = [info("y", "float32", _y_shape(reference, probe))]
    outputs += [info(f"{name}_n", *kind) for name, kind in shapes.items()]
    tensors = [*inner.graph.initializer, *g.initializers.values()]
    graph = helper.make_graph(g.nodes, "step", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    fold_constants(model)
    unroll_cells(model)
    return model


def _y_shape(reference: OnnxReference, probe: Array) -> tuple[int, ...]:
    call = reference.call
    return call.run(probe[:1], random_state(call, 1))[0].shape[2:]


def _border(is_float: bool) -> str:
    return "float32" if is_float else "int64"


def _enter(
    g: GraphBuilder, port: str, name: str, axes: Axes, rank: int, kinds: tuple[str, str]
) -> None:
    """(B, ...) of one step as the file takes it; `kinds`: our dtype and the file's."""
    value = port
    if kinds[0] != kinds[1]:
        value = g.one("Cast", value, to=ELEMENTS[kinds[1]])
    if axes.time is not None:
        value = g.one("Unsqueeze", value, g.ints(1))
    ours, theirs = _places(axes)
    perm = _permutation(rank + len(ours) - 1, ours, theirs)
    g.nodes.append(helper.make_node("Transpose", [value], [PREFIX + name], perm=perm))


def _leave(g: GraphBuilder, name: str, port: str, axes: Axes, rank: int, kind: str) -> None:
    """What the file gives as (B, ...) of one step, in our dtype."""
    ours, theirs = _places(axes)
    perm = _permutation(rank + len(ours) - 1, theirs, ours)
    value = g.one("Transpose", PREFIX + name, perm=perm)
    if axes.time is not None:
        value = g.one("Squeeze", value, g.ints(1))
    g.nodes.append(helper.make_node("Cast", [value], [port], to=ELEMENTS[kind]))


def _places(axes: Axes) -> tuple[list[int], list[int]]:
    """Batch and time: where they are with us, and in the file."""
    theirs = [at for at in (axes.batch, axes.time) if at is not None]
    return list(range(len(theirs))), theirs


def _permutation(rank: int, source: list[int], target: list[int]) -> list[int]:
    """What Transpose takes to move axes."""
    labelled = np.empty(tuple(range(1, rank + 1)), bool)
    return [size - 1 for size in np.moveaxis(labelled, source, target).shape]


def _give(g: GraphBuilder, value: FileValue, number: float) -> None:
    """An input's constant value; a free axis of it is the batch's."""
    name = PREFIX + value.name
    scalar = np.dtype(value.dtype).type(number)
    sizes = [dim if isinstance(dim, int) else 1 for dim in value.shape]
    if all(isinstance(dim, int) for dim in value.shape):
        g.initializers[name] = numpy_helper.from_array(np.full(sizes, scalar), name)
        return
    batch = g.one("Shape", "x", start=0, end=1)
    dims = [g.ints(dim) if isinstance(dim, int) else batch for dim in value.shape]
    shape = g.one("Concat", *dims, axis=0)
    filled = g.constant(np.full(sizes, scalar), "filled")
    g.nodes.append(helper.make_node("Expand", [filled, shape], [name]))
