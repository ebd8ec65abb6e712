"""A step program written out as code for TorchScript: any batch, its layers as children.

A trace would bake in every size that the program computes, so the code is written from the
program's graph, to be scripted. Products with constant weights stand in it as `nn.Linear`,
recurrent layers as `nn.LSTM`: those are what `quantize_dynamic` replaces.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from export.errors import LoweringError
from export.graphs.step_program import operation

aten = torch.ops.aten
ON_SIZES: dict[Callable[..., Any], str] = {
    operator.mul: "*",
    operator.add: "+",
    operator.sub: "-",
    operator.floordiv: "//",
    operator.mod: "%",
}


class StepCode(nn.Module):
    """forward(x (B, ...), *states (B, ...)) -> (y (B, ...), *states'), as `text` over children.

    It does not run by itself: `torchscript` compiles it, with the children that it has then.
    """

    is_step = True

    def __init__(self, program: ExportedProgram) -> None:
        """Raises:
        LoweringError: the program has no translation.
        """
        super().__init__()
        self.text = _Writer(self, program).code()
        self.requires_grad_(False)


class _Writer:
    """Writes the code of a program; what it needs becomes children and buffers of `module`."""

    def __init__(self, module: nn.Module, program: ExportedProgram) -> None:
        self._module = module
        self._program = program
        self._constants: dict[fx.Node, Tensor] = {}
        self._names: dict[fx.Node, str] = {}
        self._buffers: dict[fx.Node, str] = {}
        self._lines: list[str] = []
        self._children = 0

    def code(self) -> str:
        inputs = self._take_inputs()
        for node in self._program.graph.nodes:
            if node.op == "call_function":
                if not self._fold(node):
                    self._names[node] = f"v{len(self._names)}"
                    self._lines.append(f"{self._names[node]} = {self._call(node)}")
            elif node.op == "output":
                results = ", ".join(self._text(value) for value in node.args[0])
                self._lines.append(f"return ({results},)")
            elif node.op != "placeholder":
                raise LoweringError(f"TorchScript has no translation of {node.op} `{node.name}`")
        arguments = ", ".join(f"{name}: Tensor" for name in inputs)
        return f"def forward(self, {arguments}):\n" + "".join(f"    {s}\n" for s in self._lines)

    def _take_inputs(self) -> list[str]:
        inputs = []
        nodes = {node.name: node for node in self._program.graph.nodes if node.op == "placeholder"}
        for spec in self._program.graph_signature.input_specs:
            node = nodes[spec.arg.name]
            if spec.kind is InputKind.USER_INPUT:
                self._names[node] = f"v{len(self._names)}"
                inputs.append(self._names[node])
                continue
            target = str(spec.target)
            held = self._program.state_dict.get(target, self._program.constants.get(target))
            if not isinstance(held, Tensor):
                raise LoweringError(f"the step holds `{target}`, which is not a tensor")
            self._constants[node] = held.detach()
        return inputs

    def _fold(self, node: fx.Node) -> bool:
        """Compute at once what depends on nothing but constants."""
        known = node.all_input_nodes and all(n in self._constants for n in node.all_input_nodes)
        if not known or not isinstance(node.target, torch._ops.OpOverload):
            return False
        look_up = self._constants.__getitem__
        value = node.target(*fx.map_arg(node.args, look_up), **fx.map_arg(node.kwargs, look_up))
        if not isinstance(value, Tensor):
            return False
        self._constants[node] = value
        return True

    def _call(self, node: fx.Node) -> str:
        if node.target is operator.getitem:
            return f"{self._text(node.args[0])}[{node.args[1]}]"
        if node.target in ON_SIZES:
            sign = f" {ON_SIZES[node.target]} "
            return sign.join(self._text(arg) for arg in node.args)
        if node.target is aten.sym_size.int:
            return f"{self._text(node.args[0])}.size({node.args[1]})"
        if not isinstance(node.target, torch._ops.OpOverload):
            raise LoweringError(f"TorchScript has no translation of `{node.target}`")
        return self._product(node) or self._lstm(node) or self._plain(node)

    def _plain(self, node: fx.Node) -> str:
        packet = node.target.overloadpacket  # type: ignore[union-attr]
        arguments = [self._text(arg) for arg in node.args]
        arguments += [f"{key}={self._text(arg)}" for key, arg in node.kwargs.items()]
        namespace = str(packet._qualified_op_name).split("::")[0]
        return f"torch.ops.{namespace}.{packet.__name__}({', '.join(arguments)})"

    def _product(self, node: fx.Node) -> str:
        """A product with a constant matrix as a child; empty: it is none."""
        name, args = operation(node), node.args
        bias: Any = None
        if name == "linear":
            value, weight, *rest = args
            bias = rest[0] if rest else None
        elif name in ("mm", "matmul"):
            value, weight = args
        elif name == "addmm" and not node.kwargs:
            bias, value, weight = args
        else:
            return ""
        matrix = self._constants.get(weight)  # type: ignore[arg-type]
        offset = None if bias is None else self._constants.get(bias)
        fits = isinstance(value, fx.Node) and value not in self._constants
        if matrix is None or matrix.ndim != 2 or not fits or not matrix.is_floating_point():
            return ""
        if bias is not None and (offset is None or offset.ndim != 1):
            return ""
        if name != "linear":
            matrix = matrix.t()
        if offset is not None and len(offset) != len(matrix):
            return ""
        return f"self.{self._add(_linear(matrix, offset))}({self._text(value)})"

    def _lstm(self, node: fx.Node) -> str:
        """A torch LSTM as a child, its three results in a tuple; empty: it is none."""
        if node.target is not aten.lstm.input:
            return ""
        value, start, held, bias, layers, _, _, both, batch_first = node.args
        weights = [self._constants.get(w) for w in held]  # type: ignore[union-attr,arg-type]
        if any(w is None for w in weights):
            return ""
        tensors = [w for w in weights if w is not None]
        lstm = _torch_lstm(tensors, bool(bias), int(layers), bool(both), bool(batch_first))  # type: ignore[arg-type]
        child = self._add(lstm)
        h, c = (self._text(s) for s in start)  # type: ignore[union-attr]
        given = f"{child}_result"
        self._lines.append(f"{given} = self.{child}({self._text(value)}, ({h}, {c}))")
        return f"({given}[0], {given}[1][0], {given}[1][1])"

    def _add(self, child: nn.Module) -> str:
        self._children += 1
        name = f"layer_{self._children}"
        self._module.add_module(name, child)
        return name

    def _text(self, value: object) -> str:
        """An argument as TorchScript writes it."""
        if isinstance(value, fx.Node):
            if value in self._names:
                return self._names[value]
            if value not in self._buffers:
                self._buffers[value] = f"constant_{len(self._buffers)}"
                constant = self._constants[value].clone()
                self._module.register_buffer(self._buffers[value], constant)
            return f"self.{self._buffers[value]}"
        if isinstance(value, list | tuple):
            return f"[{', '.join(self._text(v) for v in value)}]"
        if isinstance(value, torch.device):
            return f'torch.device("{value}")'
        if isinstance(value, float) and value in (float("inf"), -float("inf")):
            return f'float("{value}")'
        if isinstance(value, str):
            return f'"{value}"'
        return str(value)


def _linear(matrix: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(matrix.shape[1], matrix.shape[0])  # quantized ones all have a bias
    with torch.no_grad():
        linear.weight.copy_(matrix)
        if bias is None:
            linear.bias.zero_()
        else:
            linear.bias.copy_(bias)
    return linear


def _torch_lstm(
    weights: Sequence[Tensor], bias: bool, layers: int, both: bool, batch_first: bool
) -> nn.LSTM:
    per_layer = len(weights) // (layers * (2 if both else 1))
    projected = per_layer == (5 if bias else 3)
    lstm = nn.LSTM(
        weights[0].shape[1],
        weights[0].shape[0] // 4,
        layers,
        bias=bias,
        batch_first=batch_first,
        bidirectional=both,
        proj_size=weights[per_layer - 1].shape[0] if projected else 0,
    )
    with torch.no_grad():
        for parameter, value in zip(lstm.parameters(), weights, strict=True):
            parameter.copy_(value)
    return lstm.eval()
