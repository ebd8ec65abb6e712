"""TorchScript variants: everything that depends on torch.jit.

It is on its way out (deprecated in torch 2.13): a torch without it costs the two TorchScript
variants. So nothing of it is touched before a variant is written.

The names of these classes and of their module stand in the archives, as those of `torch_network`.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from export.errors import LoweringError
from export.graphs.archive import write_archive
from export.graphs.step_code import StepCode
from export.graphs.torch_part import torch_part
from service.manifest import Ports

if TYPE_CHECKING:
    from torch.jit import ScriptModule

TRACE_BATCH, TRACE_STEPS = 2, 3


def write_torchscript(module: nn.Module, ports: Ports, target: Path) -> None:
    """Write what `script` makes of the module; the same module gives the same bytes.

    Raises:
        LoweringError: TorchScript does not take it.
        UnavailableError: this torch has no TorchScript.
    """
    scripted = script(module, ports)
    buffer = io.BytesIO()
    with torch_part("torch.jit"):
        torch.jit.save(scripted, buffer)
    write_archive(buffer, target)


def script(module: nn.Module, ports: Ports) -> "ScriptModule":
    """TorchScript of `forward(x (B, T, ...), *states) -> (y, *states')`, of any B and T.

    Raises:
        LoweringError: TorchScript does not take it.
        UnavailableError: this torch has no TorchScript.
    """
    with torch_part("torch.jit"), torch.no_grad():
        if isinstance(module, StepCode):
            return _loop(_compile(module), len(ports.states))
        traced = _trace(module, ports)
        return _loop(traced, len(ports.states)) if module.is_step else traced


def _trace(module: nn.Module, ports: Ports) -> "ScriptModule":
    steps = () if module.is_step else (TRACE_STEPS,)
    kind = torch.int64 if ports.x.dtype == "int64" else torch.float32
    x = torch.zeros(TRACE_BATCH, *steps, *(int(d) for d in ports.x.shape[2:]), dtype=kind)
    states = [torch.zeros(TRACE_BATCH, *(int(d) for d in s.shape[1:])) for s in ports.states]
    # Else a second trace in this process has all its names mangled. Without the store that goes
    # with the registry, scripting a class once more reads freed memory.
    torch._C._jit_clear_class_registry()
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
    traced: ScriptModule = torch.jit.trace(module.eval(), (x, *states))  # type: ignore[no-untyped-call]
    return traced


def _compile(code: StepCode) -> "ScriptModule":
    """The code with the children that it has now."""

    class Step(torch.jit.ScriptModule):
        # A class of its own: torch keeps one type for all modules of a class that look alike.
        def __init__(self) -> None:
            super().__init__()
            for name, child in code.named_children():
                setattr(self, name, torch.jit.script(child))
            for name, buffer in code.named_buffers(recurse=False):
                self.register_buffer(name, buffer)

    step = Step()
    try:
        step.define(code.text)
    except RuntimeError as error:  # torch.jit's own
        raise LoweringError(f"TorchScript does not take the step: {error}") from error
    return step


def _loop(step: "ScriptModule", count: int) -> "ScriptModule":
    """A module that runs the step over axis 1 of x."""

    class Loop(torch.jit.ScriptModule):
        def __init__(self) -> None:
            super().__init__()
            self.step = step

    loop = Loop()
    states = [f"s{k}" for k in range(count)]
    names = ", ".join(states)
    loop.define(
        f"def forward(self, x: Tensor, {', '.join(f'{s}: Tensor' for s in states)}):\n"
        "    ys = []\n"
        "    for t in range(x.size(1)):\n"
        f"        y, {names} = self.step(x[:, t], {names})\n"
        "        ys.append(y)\n"
        f"    return torch.stack(ys, 1), {names}\n"
    )
    return loop
