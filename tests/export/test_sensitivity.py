"""How far y moves with what a layer computes: the gradients, and what they are good for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from export.algebra.affine import Affine
from export.algebra.form import Root, read_form
from export.algebra.network import Network, Node
from export.algebra.recognise import lower
from export.algebra.sensitivity import WINDOWS, find_sensitivities
from export.algebra.trace import trace_step
from export.draft import ports_of
from export.finding import find_reference
from export.lowering import LoweredNetwork, lower_reference
from export.precision import ALL_ROWWISE
from export.reference import Reference
from tests.export import gru_spellings, lstm_spellings

Array = np.ndarray
STEPS = 9  # of warm-up, and of the window: the example is short


def read(module: nn.Module, x: torch.Tensor) -> tuple[Reference, Network]:
    reference = find_reference(module.eval(), x)
    trace = trace_step(reference, x)
    return reference, lower(read_form(trace), trace)


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(3, 8, num_layers=2, batch_first=True),
        nn.GRU(3, 8, batch_first=True),
        lstm_spellings.Peepholes(),
        gru_spellings.MinimalGated(),
    ],
    ids=["two layers", "gru", "peepholes", "operators"],
)
def test_they_are_what_y_moves_by(module: nn.Module) -> None:
    """A nudge of a layer's bias for the steps of the window moves y by the gradients' sum."""
    x = torch.randn(1, 4 * STEPS, 3, generator=torch.Generator().manual_seed(0))
    _, network = read(module, x)
    found = find_sensitivities(network, x.numpy())
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (WINDOWS, network.y.size))
    starts = np.zeros(WINDOWS, int)  # 36 steps have room for windows of 18, all at the start
    np.testing.assert_array_equal(found.pop("y"), np.eye(network.y.size))
    assert found
    for layer, gradients in found.items():
        size = gradients.shape[1]
        last = 1 if layer.startswith("state") else 0  # a state of the last step moves no y
        assert gradients.shape == (WINDOWS * (STEPS - last), size)
        direction = 1e-6 * np.random.default_rng(1).standard_normal((size,))
        up = run(network, x.numpy(), starts, {layer: direction})
        down = run(network, x.numpy(), starts, {layer: np.negative(direction)})
        wanted = ((up - down) / 2 * signs).sum()
        assert (gradients @ direction).sum() == pytest.approx(wanted, rel=1e-4, abs=1e-12)


def run(network: Network, x: Array, starts: Array, nudges: dict[str, Array]) -> Array:
    """y at the end of each window, the biases nudged in its second half."""
    state = {port: np.zeros((len(starts), size)) for port, size in network.states.items()}
    for step in range(2 * STEPS):
        if step == STEPS:
            network = nudged(network, nudges)
        y, state = network.step(x[0, starts + step].astype(float), state)
    return y


def nudged(network: Network, nudges: dict[str, Array]) -> Network:
    """The network, something added to the biases of some layers."""
    changed: list[Node] = []
    for node in network.nodes:
        if isinstance(node, Root):
            args = tuple(
                moved(arg, nudges.get(f"{node.name}.{k}")) for k, arg in enumerate(node.args)
            )
            changed.append(replace(node, args=args))
            continue
        copy = replace(node)
        parts = {k: moved(part, nudges.get(f"{node.name}.{k}")) for k, part in node.parts.items()}
        copy.__dict__["parts"] = parts
        changed.append(copy)
    free = {p: moved(affine, nudges.get(f"state {p}")) for p, affine in network.free.items()}
    return replace(network, nodes=tuple(changed), free=free)


def moved(affine: Affine, nudge: Array | None) -> Affine:
    return affine if nudge is None else Affine(affine.blocks, affine.bias + nudge)


def test_an_example_of_a_few_steps_gives_none() -> None:
    """Then all of the weights are int8."""
    x = torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(0))
    reference, network = read(nn.LSTM(3, 16, batch_first=True), x)
    assert find_sensitivities(network, x.numpy()) == {}
    _, step = LoweredNetwork(network, x.numpy()).rowwise_graphs(
        ports_of(reference, x.numpy()), ALL_ROWWISE
    )
    operators = {node.op_type for node in step.graph.node}
    assert "MatMulIntegerToFloat" in operators and "MatMul" not in operators


def test_the_same_example_gives_the_same_bytes() -> None:
    """Lowered twice, the graphs with a part in float are the same to the last bit."""
    torch.manual_seed(0)
    module = nn.LSTM(3, 32, num_layers=2, batch_first=True)
    x = torch.randn(1, 200, 3)
    reference = find_reference(module.eval(), x)
    ports = ports_of(reference, x.numpy())
    first, second = (
        lower_reference(reference, x).rowwise_graphs(ports, ALL_ROWWISE) for _ in range(2)
    )
    assert [g.SerializeToString() for g in first] == [g.SerializeToString() for g in second]
    assert "MatMul" in {node.op_type for node in first[1].graph.node}
