"""ONNX graphs under construction, with `onnx.helper`, and the ports that all of them have.

Ports: x (B, T, ...), lengths (B,) int64, `NAME_0` in and `NAME_n` out of each state, y (B, T, ...).
A graph of one step has no lengths, and shapes of its own: the same elements, batch first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.algebra.affine import Affine
from export.algebra.cells import StateSlice
from export.algebra.form import Root
from export.algebra.pointwise import FUNCTIONS
from export.algebra.terms import Rows, Term, sizes, split
from export.errors import LoweringError
from service.manifest import Port, Ports

Array = np.ndarray
OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
ELEMENT_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


class GraphBuilder:
    """Nodes and initializers under construction; equal constants are stored once."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.prepared: list[onnx.NodeProto] = []  # of constants alone, outside any Scan
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._shared: dict[tuple[str, tuple[str, ...], str], str] = {}
        self._count = 0

    def fresh(self, hint: str) -> str:
        self._count += 1
        return f"{hint}_{self._count}"

    def constant(self, value: Array, hint: str) -> str:
        key = (str(value.dtype), value.shape, value.tobytes())
        if key not in self._constants:
            name = self.fresh(hint)
            self._constants[key] = name
            self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return self._constants[key]

    def prepare(self, op: str, *constants: str, **attributes: Any) -> str:
        """An operation on constants: ONNX Runtime folds it into one when it loads the model.

        It stands outside a Scan: inside, it would be done at each step.
        """
        key = (op, constants, str(attributes))
        if key not in self._shared:
            self._shared[key] = self.fresh(op.lower())
            self.prepared.append(
                helper.make_node(op, list(constants), [self._shared[key]], **attributes)
            )
        return self._shared[key]

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64), "ints")

    def node(
        self, op: str, inputs: Sequence[str], outputs: int = 1, hint: str = "", **attributes: Any
    ) -> list[str]:
        """Append a node; an operator that is not ONNX's own is ONNX Runtime's."""
        domain = attributes.pop("domain", "")
        names = [self.fresh(hint or op.lower()) for _ in range(outputs)]
        self.nodes.append(
            helper.make_node(op, list(inputs), names, domain=str(domain), **attributes)
        )
        return names

    def one(self, op: str, *inputs: str, hint: str = "", **attributes: Any) -> str:
        """Append a node of one output and name that."""
        return self.node(op, inputs, hint=hint, **attributes)[0]

    def shared(self, op: str, *inputs: str, **attributes: Any) -> str:
        """As `one`, but the same operation on the same inputs is there once."""
        key = (op, inputs, str(attributes))
        if key not in self._shared:
            self._shared[key] = self.one(op, *inputs, **attributes)
        return self._shared[key]

    def name(self, value: str, final: str) -> None:
        """Give `value`, which some node computed, the name of an output port."""
        for node in _with_inner(self.nodes):
            for names in (node.input, node.output):
                for k, found in enumerate(names):
                    if found == value:
                        names[k] = final

    def affine(self, affine: Affine, values: Mapping[str, str]) -> str:
        """The affine map of (.., F) values in float32, its parts joined on the last axis."""
        width = sizes(affine)
        parts = [self.rows(rows, values, width) for rows in split(affine)]
        return parts[0] if len(parts) == 1 else self.one("Concat", *parts, axis=-1)

    def rows(
        self,
        rows: Rows,
        values: Mapping[str, str],
        width: Mapping[str, int],
        weight: Callable[[Term], str] | None = None,
    ) -> str:
        """One group of rows: picked elements, products, and the bias, added up.

        Args:
            weight: the name of a product's matrix (n_in, n_out); None: a float32 constant.
        """
        total = ""
        for term in sorted(rows.terms, key=lambda t: t.sign, reverse=True):
            value = self.term(term, values[term.source], width[term.source], weight)
            if not total:
                total = self.one("Neg", value) if term.sign < 0 else value
            else:
                total = self.one("Sub" if term.sign < 0 else "Add", total, value)
        if rows.bias.any() or not total:
            bias = self.constant(rows.bias.astype(np.float32), "bias")
            total = self.one("Add", total, bias) if total else bias
        return total

    def term(
        self,
        term: Term,
        value: str,
        width: int,
        weight: Callable[[Term], str] | None = None,
    ) -> str:
        """A product with its source, or the elements that it picks, without their sign."""
        if term.matrix is not None:
            if weight is None:
                matrix = self.constant(term.matrix.T.astype(np.float32), "weight")
            else:
                matrix = weight(term)
            return self.shared("MatMul", value, matrix)  # z * sigmoid(z) takes z twice
        if term.stop - term.start == width:
            return value
        last = self.ints(-1)
        return self.shared("Slice", value, self.ints(term.start), self.ints(term.stop), last)

    def embedding(self, root: Root, x: str, leading: int) -> str:
        """The table's rows of integers x (.., n), its leading axes `leading`, side by side."""
        if root.table is None:
            raise LoweringError(f"`{root.name}` has no table")
        table = self.constant(root.table.astype(np.float32), "table")
        found = self.one("Gather", table, x)  # (.., n, E)
        return self.one("Reshape", found, self.ints(*[0] * leading, -1))

    def pointwise(self, root: Root, arguments: Sequence[str]) -> str:
        return self.apply(root.fn, arguments, root.constants)

    def apply(self, function: str, arguments: Sequence[str], constants: Sequence[float]) -> str:
        """A function of `pointwise.FUNCTIONS`."""
        known = FUNCTIONS[function]
        if not isinstance(known.onnx, str):
            return known.onnx(self, arguments, constants)
        if known.constant_inputs:
            numbers = [self.constant(np.array(c, np.float32), "constant") for c in constants]
            return self.one(known.onnx, *arguments, *numbers)
        named: dict[str, Any] = dict(zip(known.attributes, constants, strict=True))
        return self.one(known.onnx, *arguments, **named)

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The finished, checked model."""
        graph = helper.make_graph(
            [*self.prepared, *self.nodes],
            "carousel",
            inputs,
            outputs,
            list(self.initializers.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain == MICROSOFT for node in all_nodes(graph)):
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="carousel"
        )
        onnx.checker.check_model(model, full_check=True)
        return model


Infos = tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]  # of inputs, of outputs


def port_infos(ports: Ports) -> Infos:
    """The inputs and outputs of a graph over a chunk."""

    def info(name: str, port: Port) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, ELEMENT_TYPES[port.dtype], port.shape)

    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT64, ["B"])
    inputs = [info("x", ports.x), lengths, *(info(s.input, s) for s in ports.states)]
    return inputs, [info("y", ports.y), *(info(s.output, s) for s in ports.states)]


def step_infos(
    ports: Ports,
    x: tuple[int, ...],
    y: tuple[int, ...],
    states: Mapping[str, tuple[int, ...]],
) -> Infos:
    """The inputs and outputs of a graph of one step, of these shapes without the batch."""

    def info(name: str, dtype: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], ["B", *shape])

    inputs = [info("x", ports.x.dtype, x)]
    inputs += [info(s.input, s.dtype, states[s.name]) for s in ports.states]
    outputs = [info("y", ports.y.dtype, y)]
    return inputs, outputs + [info(s.output, s.dtype, states[s.name]) for s in ports.states]


def join_pieces(
    g: GraphBuilder, pieces: Mapping[tuple[str, int], str], ports: Iterable[str]
) -> dict[str, str]:
    """Each port's flat state (B, n) from what its cells left at their places."""
    joined = {}
    for port in ports:
        parts = [pieces[key] for key in sorted(pieces) if key[0] == port]
        joined[port] = parts[0] if len(parts) == 1 else g.one("Concat", *parts, axis=1)
    return joined


def start_states(
    g: GraphBuilder, ports: Ports, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """Each state in the shape (without the batch) that a step computes with."""
    return {
        s.name: s.input
        if _shape(s) == shapes[s.name]
        else g.one("Reshape", s.input, g.ints(-1, *shapes[s.name]), hint=f"{s.name}_flat")
        for s in ports.states
    }


def finish_states(
    g: GraphBuilder,
    new: Mapping[str, str],
    ports: Ports,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Name each new state, of the shape that the step computes with, as its output port."""
    computed = {name for node in g.nodes for name in node.output}
    for s in ports.states:
        value = new[s.name]
        alone = value in computed and list(new.values()).count(value) == 1
        if _shape(s) != shapes[s.name] or not alone:
            value = g.one("Reshape", value, g.ints(-1, *_shape(s)))
        g.name(value, s.output)


def finish_step(g: GraphBuilder, y: str, new: Mapping[str, str], ports: Ports) -> None:
    """Name y and each new state, as a step computes them, as the output ports."""
    computed = {name for node in g.nodes for name in node.output}
    outputs = {"y": y, **{s.output: new[s.name] for s in ports.states}}
    found = list(outputs.values())
    for name, value in outputs.items():
        alone = value in computed and found.count(value) == 1
        g.name(value if alone else g.one("Identity", value), name)


def _shape(port: Port) -> tuple[int, ...]:
    return tuple(int(dim) for dim in port.shape[1:])


def take_slice(g: GraphBuilder, s: StateSlice, flat: str, size: int) -> str:
    """The columns of a flat state (B, n) that a cell holds: (B, H)."""
    if s.stop - s.start == size:
        return flat
    return g.one("Slice", flat, g.ints(s.start), g.ints(s.stop), g.ints(1))


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Every node of a graph, those inside a Scan too."""
    return _with_inner(graph.node)


def _with_inner(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    found = []
    for node in nodes:
        found.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += all_nodes(attribute.g)
    return found
