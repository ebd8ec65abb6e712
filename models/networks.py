"""The sequence models: a recurrent core and a linear head, one forecast per step.

They take the state in and give it out, ``(x, state) -> (y, state)``; nothing of a stream stays on
the module. Shape letters: B batch, T time, I input, O output, H hidden, L layers.
"""

import torch
from torch import Tensor, nn

from models.cells import GRUCell, LSTMCell


class CellForecaster(nn.Module):
    """The hand-written cell, looped over time, with a linear head on every h.

    Args:
        input_size: I, features of x.
        hidden_size: H, features of h and of c.
        output_size: O, features of y.
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.cell = LSTMCell(input_size, hidden_size)
        self.head = nn.Linear(hidden_size, output_size)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Forecast, after each step, the step that follows it.

        Args:
            x: (B, T, I), standardised (unitless).
            state: (h, c), each (B, H), as the previous chunk left it. Not changed. None: zeros.
        Returns:
            y (B, T, O), standardised: ``y[:, t]`` is the forecast of ``x[:, t + 1]``; and the state
            after the last step, (h, c), each (B, H).
        """
        if state is None:
            zeros = x.new_zeros(x.shape[0], self.cell.hidden_size)
            state = (zeros, zeros)
        h, c = state
        outputs = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            outputs.append(h)
        y = self.head(torch.stack(outputs, dim=1))  # (B, T, O)
        return y, (h, c)


class LSTMForecaster(nn.Module):
    """The twin of ``CellForecaster`` on ``nn.LSTM``: the same function, any number of layers.

    Args:
        input_size: I, features of x.
        hidden_size: H, features of h and of c in each layer.
        output_size: O, features of y.
        num_layers: L, stacked layers.
        dropout: the share of a layer's h dropped on its way to the next layer, in training only;
            so it needs ``num_layers`` of 2 or more.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(
            input_size, hidden_size, num_layers=num_layers, dropout=dropout, batch_first=True
        )
        self.head = nn.Linear(hidden_size, output_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the core as ``LSTMCell`` does: Xavier-uniform weights, forget bias 1, others 0."""
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
                continue
            for gate in parameter.detach().chunk(4):  # each gate alone: one matrix, one fan-out
                nn.init.xavier_uniform_(gate)
        for layer in range(self.lstm.num_layers):
            # nn.LSTM orders its gates i, f, g, o and adds two biases: only one of them gets the 1.
            _, f, _, _ = getattr(self.lstm, f"bias_ih_l{layer}").detach().chunk(4)
            nn.init.ones_(f)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Forecast, after each step, the step that follows it.

        Args:
            x: (B, T, I), standardised (unitless).
            state: (h, c), each (L, B, H), as the previous chunk left it. Not changed. None: zeros.
        Returns:
            y (B, T, O), standardised: ``y[:, t]`` is the forecast of ``x[:, t + 1]``; and the state
            after the last step, (h, c), each (L, B, H).
        """
        outputs, state = self.lstm(x, state)  # (B, T, H)
        return self.head(outputs), state


class GRUForecaster(nn.Module):
    """The hand-written GRU cell, looped over time, with a linear head on every h.

    Args:
        input_size: I, features of x.
        hidden_size: H, features of h.
        output_size: O, features of y.
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.cell = GRUCell(input_size, hidden_size)
        self.head = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Forecast, after each step, the step that follows it.

        Args:
            x: (B, T, I), standardised (unitless).
            h: (B, H), as the previous chunk left it. Not changed. None: zeros.
        Returns:
            y (B, T, O), standardised, and h (B, H) after the last step.
        """
        if h is None:
            h = x.new_zeros(x.shape[0], self.cell.hidden_size)
        outputs = []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            outputs.append(h)
        return self.head(torch.stack(outputs, dim=1)), h


class StackForecaster(nn.Module):
    """Hand-written LSTM cells one above the other, each on the h of the one below.

    Args:
        input_size: I, features of x.
        hidden_size: H, features of h and of c in each layer.
        output_size: O, features of y.
        num_layers: L, cells.
    """

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int, num_layers: int
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.cells = nn.ModuleList(LSTMCell(size, hidden_size) for size in sizes)
        self.head = nn.Linear(hidden_size, output_size)

    def forward(
        self, x: Tensor, states: list[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Forecast, after each step, the step that follows it.

        Args:
            x: (B, T, I), standardised (unitless).
            states: for each layer (h, c), each (B, H). Not changed. None: zeros.
        Returns:
            y (B, T, O), standardised, and for each layer (h, c) after the last step.
        """
        if states is None:
            zeros = x.new_zeros(x.shape[0], self.hidden_size)
            states = [(zeros, zeros) for _ in self.cells]
        states = list(states)
        outputs = []
        for t in range(x.shape[1]):
            inp = x[:, t]
            for layer, cell in enumerate(self.cells):
                states[layer] = cell(inp, states[layer])
                inp = states[layer][0]
            outputs.append(inp)
        return self.head(torch.stack(outputs, dim=1)), states
