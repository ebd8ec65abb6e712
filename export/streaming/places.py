"""Which of the user's submodules an operation of a trace came from, in words for its user."""

from collections import deque
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from export.algebra.trace import without_onednn

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul", "mv")


def describe_operation(module: nn.Module, x: Tensor, node: fx.Node) -> str:
    """`node` of a trace of `module(x)`, like "the softmax in `pool`" or "the flip at `lstm`":

    inside a submodule, or of what the weights of one gave last.

    Args:
        module: in eval mode. Not changed.
        x: as it was traced with.
    """
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0].strip("_")
    words = "matrix product" if name in PRODUCTS else name
    alike = [n for n in node.graph.nodes if n.target is node.target]
    places = _run(module, x).get(str(node.target), [])
    inside = places[alike.index(node)] if len(places) == len(alike) else ""
    if inside:
        return f"the {words} in `{inside}`"
    near = _nearest_weights(module, node)
    return f"the {words} at `{near}`" if near else f"the {words}"


def _nearest_weights(module: nn.Module, node: fx.Node) -> str:
    """The submodule whose weights the operation's arguments were made with, last of all."""
    owners = {id(p): name.rpartition(".")[0] for name, p in module.named_parameters()}
    seen, queue = {node}, deque([node])
    while queue:
        one = queue.popleft()
        if one.op == "get_attr" and one.graph.owning_module is not None:
            owner = owners.get(id(getattr(one.graph.owning_module, str(one.target), None)))
            if owner:
                return owner
        fresh = [n for n in one.all_input_nodes if n not in seen]
        seen.update(fresh)
        queue.extend(fresh)
    return ""


def _run(module: nn.Module, x: Tensor) -> dict[str, list[str]]:
    """operation -> for each time that it ran, where."""
    found: dict[str, list[str]] = {}
    inside: list[str] = [""]

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            found.setdefault(str(func), []).append(inside[-1])
            return func(*args, **(kwargs or {}))

    def enter(path: str) -> Any:
        return lambda *_: inside.append(path)

    def leave(*_: object) -> None:
        inside.pop()

    # With gradients enabled, or torch's own fast paths would hide whole layers.
    with ExitStack() as hooks, torch.enable_grad(), without_onednn():
        for path, child in module.named_modules():
            if path:
                hooks.callback(child.register_forward_pre_hook(enter(path)).remove)
                hooks.callback(child.register_forward_hook(leave).remove)
        hooks.enter_context(Watch())  # type: ignore[no-untyped-call]
        module(x)
    return found
