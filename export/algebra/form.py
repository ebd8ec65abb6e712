"""The affine form of a step: what is left of a graph when every spelling is taken away.

Rules
- A root is an input (x or a state) or the result of an operation that is not affine.
- Every other value is affine in the roots: sum of matrix @ root, plus a bias. The matrices are
  read off numerically in float64, by feeding unit vectors, whatever operations spell them.
- Roots and values are flat, (B, n); a value in which rows of the batch meet has no form.
- What was read off is compared with the graph on random and on large values before it counts.

So a cell of four matrices, one of a chunked 4H matrix, `nn.LSTM` and an einsum have one form.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor, fx

from export.algebra.affine import Affine
from export.algebra.pointwise import FUNCTIONS, OVER_AXIS
from export.algebra.spellings import function_of, groups
from export.algebra.trace import Trace, is_integer, shape_of
from export.errors import LoweringError

Array = np.ndarray

LINEAR = {  # linear in all that depends on the input; the bias is read off with the rest
    "add", "sub", "rsub", "neg", "cat", "stack", "select", "slice", "view", "_unsafe_view",
    "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "split",
    "split_with_sizes", "unsafe_split", "unsafe_chunk", "chunk", "unbind", "clone", "contiguous",
    "alias", "detach", "lift_fresh_copy", "_to_copy", "sum", "mean", "flatten", "narrow",
    "index_select", "select_copy", "slice_copy", "view_copy", "permute_copy", "transpose_copy",
    "t_copy", "unsqueeze_copy", "squeeze_copy", "expand_copy", "split_copy", "unbind_copy",
    "flip", "repeat",
    "native_batch_norm", "_native_batch_norm_legit_no_training",
    "constant_pad_nd", "getitem", "slice_scatter",
    "select_scatter", "copy", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones",
    "new_full", "cumsum", "roll", "unfold", "index", "diagonal", "diag_embed", "tril", "triu",
    "pixel_shuffle", "pixel_unshuffle", "im2col", "col2im", "avg_pool2d", "_adaptive_avg_pool2d",
    "upsample_nearest1d", "upsample_nearest2d",
}  # fmt: skip
BILINEAR = {
    "mul", "mm", "bmm", "matmul", "addmm", "baddbmm", "mv", "dot", "div", "convolution",
}  # fmt: skip
MAX_ELEMENTS = 10**8  # float64 of all matrices of a form: 0.8 GB
CHECK_TOLERANCE = 1e-10  # relative to the largest value, in float64


@dataclass(frozen=True)
class Root:
    """`fn` of affine arguments of the root's own size; inputs have none.

    An embedding has none either: it is the rows of its table that the integers of x name.
    """

    name: str
    fn: str  # "input", "embedding" or a name of `pointwise.FUNCTIONS`
    size: int
    args: tuple[Affine, ...] = ()
    constants: tuple[float, ...] = ()
    table: Array | None = None  # (ids, E) float64, of an embedding


@dataclass(frozen=True)
class Form:
    """Roots in the order of computation; y and each state as affine values of them."""

    roots: Mapping[str, Root]
    y: Affine
    states: Mapping[str, Affine]


def read_form(trace: Trace) -> Form:
    """Read the affine form off a trace.

    Raises:
        LoweringError: an operation is neither affine nor known, or mixes rows of the batch.
    """
    return _Reader(trace).form()


@dataclass
class _Reader:
    trace: Trace
    roots: dict[fx.Node, str] = field(default_factory=dict)  # node -> root name
    depends: set[fx.Node] = field(default_factory=set)  # nodes that depend on an input
    values: dict[fx.Node, object] = field(default_factory=dict)  # with every root zero

    def form(self) -> Form:
        names = iter(("x", *self.trace.state_names))
        for node in self.trace.graph.graph.nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                self._add_root(node, next(names))
            elif any(n in self.depends for n in node.all_input_nodes) and not self._is_affine(node):
                self._add_root(node, node.name)
            else:
                if any(n in self.depends for n in node.all_input_nodes):
                    self.depends.add(node)
                self.values[node] = self._compute(node, self.values)
        targets = self._targets()
        affine = self._read(targets)
        self._check(targets, affine)
        return self._assemble(affine)

    def _add_root(self, node: fx.Node, name: str) -> None:
        self.roots[node] = name
        self.depends.add(node)
        kind = torch.int64 if _holds_ids(node) else torch.float64
        self.values[node] = torch.zeros(shape_of(node), dtype=kind)

    def _is_affine(self, node: fx.Node) -> bool:
        function = function_of(node)
        name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
        moving = [n for n in node.all_input_nodes if n in self.depends]
        if name == "where" and node.args[0] not in moving:
            return True
        if function and name not in BILINEAR:
            self._check_index(node, function[0])
            return False
        if name in BILINEAR:
            if name == "div" and moving == [node.args[0]] and node.args[1] is not node.args[0]:
                return True
            factors = [a for a in node.args if isinstance(a, fx.Node)]
            if name in ("addmm", "baddbmm"):  # the first is the summand
                factors = factors[1:]
            if name != "div" and sum(f in self.depends for f in factors) <= 1:
                return True
            if function:
                return False
        elif name in LINEAR:
            return True
        raise LoweringError(
            f"the operation `{name}` on values of shape {[shape_of(n) for n in moving]} is not one "
            "that lowering knows; it knows affine maps, embedding and those of "
            "export/algebra/spellings.py"
        )

    def _compute(self, node: fx.Node, values: Mapping[fx.Node, object]) -> object:
        try:
            return self.trace.compute(node, values)
        except Exception as error:  # of any operation, on values it was not traced with
            raise LoweringError(f"`{node.target}` is not affine: {error}") from error

    def _check_index(self, node: fx.Node, fn: str) -> None:
        """An embedding must be of x itself, in its order."""
        if fn != "embedding":
            return
        x, index = self.trace.placeholders()[0], node.args[1]
        numbers = torch.arange(int(np.prod(shape_of(x)))).reshape(shape_of(x))
        between = [n for n in self.trace.graph.graph.nodes if n in self.depends - set(self.roots)]
        found = self._propagate({x: numbers}, between)[index] if _holds_ids(x) else None  # type: ignore[index]
        if not isinstance(found, Tensor) or not torch.equal(found.flatten(), numbers.flatten()):
            raise LoweringError("an embedding is taken of something else than x as it comes")

    def _targets(self) -> dict[str, fx.Node | float]:
        """What must be read: every argument of every root, and the outputs."""
        targets: dict[str, fx.Node | float] = {}
        for node, name in self.roots.items():
            if node.op != "placeholder":
                for i, arg in enumerate(_arguments(node)):
                    targets[f"{name}/{i}"] = arg
        targets |= dict(zip(("y", *self.trace.state_names), self.trace.outputs(), strict=True))
        return targets

    def _flatten(self, value: Tensor, shape: tuple[int, ...]) -> Array:
        """(.., B, ..) -> (B, n), broadcast to `shape` first."""
        axes = [i for i, n in enumerate(shape) if n == self.trace.batch]
        if len(axes) != 1:
            raise LoweringError(f"a value of shape {shape} has no one axis of the batch")
        full = torch.broadcast_to(value, shape)
        return full.movedim(axes[0], 0).reshape(self.trace.batch, -1).numpy()

    def _target_shape(self, key: str, node: fx.Node | float) -> tuple[int, ...]:
        owner, slash, _ = key.rpartition("/")
        if slash:
            root = next(n for n, name in self.roots.items() if name == owner)
            over_axis = isinstance(node, fx.Node) and _function(root) in OVER_AXIS
            return shape_of(node) if over_axis else shape_of(root)  # type: ignore[arg-type]
        if not isinstance(node, fx.Node):
            raise LoweringError(f"the output `{key}` is not a tensor")
        return shape_of(node)

    def _snapshot(
        self, targets: Mapping[str, fx.Node | float], values: Mapping[fx.Node, object]
    ) -> dict[str, Array]:
        found = {}
        for key, node in targets.items():
            value = values[node] if isinstance(node, fx.Node) else node
            tensor = torch.as_tensor(value, dtype=torch.float64)
            found[key] = self._flatten(tensor, self._target_shape(key, node))
        return found

    def _read(self, targets: Mapping[str, fx.Node | float]) -> dict[str, Affine]:
        self._check_size(targets)
        bias = {key: value[0].copy() for key, value in self._snapshot(targets, self.values).items()}
        blocks: dict[str, dict[str, Array]] = {key: {} for key in targets}
        for node, name in self._real_roots():
            downstream, reached = self._downstream(node, targets)
            size = int(np.prod(shape_of(node))) // self.trace.batch
            columns: dict[str, list[Array]] = {key: [] for key in reached}
            for start in range(0, size, self.trace.batch):
                count = min(self.trace.batch, size - start)
                units = torch.zeros(self.trace.batch, size, dtype=torch.float64)
                units[range(count), range(start, start + count)] = 1.0
                values = self._propagate({node: self._unflatten(units, node)}, downstream)
                for key, value in self._snapshot(reached, values).items():
                    columns[key].append((value - bias[key])[:count])
            for key, rows in columns.items():
                matrix = np.concatenate(rows).T
                if matrix.any():
                    blocks[key][name] = np.ascontiguousarray(matrix)
        return {key: Affine(blocks[key], bias[key]) for key in targets}

    def _check_size(self, targets: Mapping[str, fx.Node | float]) -> None:
        """Refuse, before anything is allocated, what is too large, or computes with ids."""
        size = {k: prod(self._target_shape(k, n)) // self.trace.batch for k, n in targets.items()}
        total = 0
        for node, name in self.roots.items():
            _, reached = self._downstream(node, targets)
            if _holds_ids(node) and reached:
                raise LoweringError(f"`{next(iter(reached))}` is computed from the ids in `{name}`")
            total += prod(shape_of(node)) // self.trace.batch * sum(size[key] for key in reached)
        if total > MAX_ELEMENTS:
            raise LoweringError(
                f"the affine form of the step would take {total:.1e} numbers, allowed "
                f"{MAX_ELEMENTS:.0e}: its values are too large to be written as matrices"
            )

    def _real_roots(self) -> list[tuple[fx.Node, str]]:
        return [(node, name) for node, name in self.roots.items() if not _holds_ids(node)]

    def _unflatten(self, flat: Tensor, node: fx.Node) -> Tensor:
        shape = shape_of(node)
        axis = shape.index(self.trace.batch)
        rest = shape[:axis] + shape[axis + 1 :]
        return flat.reshape(self.trace.batch, *rest).movedim(0, axis)

    def _downstream(
        self, root: fx.Node, targets: Mapping[str, fx.Node | float]
    ) -> tuple[list[fx.Node], dict[str, fx.Node | float]]:
        """The nodes that `root` reaches through no other root, and the targets among them."""
        seen = {root}
        ordered: list[fx.Node] = []
        for node in self.trace.graph.graph.nodes:
            if node not in self.roots and any(n in seen for n in node.all_input_nodes):
                if node.op == "output":
                    break
                seen.add(node)
                ordered.append(node)
        reached: dict[str, fx.Node | float] = {k: n for k, n in targets.items() if n in seen}
        return ordered, reached

    def _propagate(
        self, given: Mapping[fx.Node, Tensor], nodes: Iterable[fx.Node]
    ) -> dict[fx.Node, object]:
        values = {**self.values, **given}
        for node in nodes:
            values[node] = self._compute(node, values)
        return values

    def _check(self, targets: Mapping[str, fx.Node | float], affine: Mapping[str, Affine]) -> None:
        generator = torch.Generator().manual_seed(0)
        inner = [n for n in self.trace.graph.graph.nodes if n in self.depends - set(self.roots)]
        for scale in (1.0, 1e4):
            flat = {
                name: scale
                * torch.randn(
                    self.trace.batch,
                    int(np.prod(shape_of(node))) // self.trace.batch,
                    generator=generator,
                    dtype=torch.float64,
                )
                for node, name in self._real_roots()
            }
            given = {node: self._unflatten(flat[name], node) for node, name in self._real_roots()}
            found = self._snapshot(targets, self._propagate(given, inner))
            roots = {name: value.numpy() for name, value in flat.items()}
            for key, value in found.items():
                error = np.abs(affine[key](roots) - value).max()
                if not error <= CHECK_TOLERANCE * max(1.0, np.abs(value).max()):
                    raise LoweringError(
                        f"`{key}` is not row by row affine in what precedes it: off by {error:.1e}"
                    )

    def _assemble(self, affine: Mapping[str, Affine]) -> Form:
        roots = {}
        for node, name in self.roots.items():
            size = int(np.prod(shape_of(node))) // self.trace.batch
            if node.op == "placeholder":
                roots[name] = Root(name, "input", size)
            else:
                args = tuple(affine[f"{name}/{i}"] for i in range(len(_arguments(node))))
                fn, constants = function_of(node) or ("", ())
                if fn in OVER_AXIS:
                    argument = node.args[0]
                    sizes = groups(node, shape_of(argument), self.trace.batch)  # type: ignore[arg-type]
                    constants = (*sizes, *constants)
                table = self.values[node.args[0]] if fn == "embedding" else None  # type: ignore[index]
                array = table.numpy() if isinstance(table, Tensor) else None
                roots[name] = Root(name, fn, size, args, constants, array)
        return Form(roots, affine["y"], {name: affine[name] for name in self.trace.state_names})


def _holds_ids(node: fx.Node) -> bool:
    """Whether a root is an integer input; what holds or not is a number, 1 or 0."""
    return node.op == "placeholder" and is_integer(node)


def _function(node: fx.Node) -> str:
    return (function_of(node) or ("", ()))[0]


def _arguments(node: fx.Node) -> list[fx.Node | float]:
    """What an operation computes with: not its axis, dtype or constants, nor an embedding's ids."""
    fn = _function(node)
    count = FUNCTIONS[fn].arity if fn in FUNCTIONS else 0
    return list(node.args[:count])  # type: ignore[arg-type]
