"""The names in an ONNX graph: who reads which, and other names for all of them."""

import onnx


def prefixed(proto: onnx.ModelProto, prefix: str) -> onnx.ModelProto:
    """A copy whose names begin with `prefix`, as its sub-graphs' nodes read them too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    own = [part.name for part in (*graph.input, *graph.initializer)]
    own += [name for node in graph.node for name in node.output]
    names = {name: prefix + name for name in own if name}
    for node in graph.node:
        rename(node, names)
    for part in (*graph.input, *graph.initializer, *graph.output):
        part.name = names.get(part.name, part.name)
    return copy


def reads(node: onnx.NodeProto) -> set[str]:
    """What a node reads, its sub-graphs too."""
    found = set(node.input)
    for body in bodies(node):
        found |= {name for inner in body.node for name in reads(inner)}
        found |= {value.name for value in body.output}
    return found


def rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Rename what a node reads and gives; its sub-graphs may read it too."""
    for values in (node.input, node.output):
        for k, name in enumerate(values):
            values[k] = names.get(name, name)
    for body in bodies(node):
        for inner in body.node:
            rename(inner, names)
        for value in body.output:
            value.name = names.get(value.name, value.name)


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The sub-graphs of an If, Loop or Scan."""
    return [a.g for a in node.attribute if a.HasField("g")]
