"""The recurrent cells, written out gate by gate the way one learns them.

Shape letters: B batch, I input, H hidden.
"""

import torch
from torch import Tensor, nn

FORGET_BIAS = 1.0  # unitless; f = sigmoid(1) = 0.73 at first, so early gradients survive many steps


class LSTMCell(nn.Module):
    """One step of a long short-term memory, four weight matrices over ``cat(h, x)``.

    Equations of Hochreiter & Schmidhuber, "Long Short-Term Memory" (1997), with the forget gate of
    Gers, Schmidhuber & Cummins, "Learning to Forget" (2000). The forget bias starts at 1 after
    Jozefowicz, Zaremba & Sutskever (2015). No peepholes: the gates see h and x, never c.

    It computes what ``nn.LSTMCell`` does, laid out otherwise: one matrix per gate instead of four
    stacked, h before x, and one bias per gate where ``nn.LSTMCell`` adds two.

    Args:
        input_size: I, features of x.
        hidden_size: H, features of h and of c.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        shape = (hidden_size, hidden_size + input_size)
        self.W_f = nn.Parameter(torch.empty(shape))  # (H, H + I), as the next three
        self.W_i = nn.Parameter(torch.empty(shape))
        self.W_C = nn.Parameter(torch.empty(shape))
        self.W_o = nn.Parameter(torch.empty(shape))
        self.b_f = nn.Parameter(torch.empty(hidden_size))  # (H,), as the next three
        self.b_i = nn.Parameter(torch.empty(hidden_size))
        self.b_C = nn.Parameter(torch.empty(hidden_size))
        self.b_o = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start afresh: Xavier-uniform weights (Glorot & Bengio, 2010), forget bias 1, others 0."""
        for weight in (self.W_f, self.W_i, self.W_C, self.W_o):
            nn.init.xavier_uniform_(weight)
        for bias in (self.b_i, self.b_C, self.b_o):
            nn.init.zeros_(bias)
        nn.init.constant_(self.b_f, FORGET_BIAS)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor], return_gates: bool = False
    ) -> tuple[Tensor, Tensor] | tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Advance each row by one step.

        Args:
            x: (B, I), the weights' dtype.
            state: (h, c), each (B, H), the weights' dtype. Not changed.
            return_gates: also return what the gates were, for plots and for tests.
        Returns:
            (h, c), each (B, H); with ``return_gates``, ``(h, c), gates``, where gates holds
            ``f``, ``i``, ``o`` in (0, 1) and the candidate ``g`` in (-1, 1), each (B, H).
        """
        h, c = state
        hx = torch.cat((h, x), dim=1)  # (B, H + I)
        f = torch.sigmoid(hx @ self.W_f.T + self.b_f)  # (B, H), as the next three
        i = torch.sigmoid(hx @ self.W_i.T + self.b_i)
        g = torch.tanh(hx @ self.W_C.T + self.b_C)
        o = torch.sigmoid(hx @ self.W_o.T + self.b_o)
        c = f * c + i * g
        h = o * torch.tanh(c)
        if return_gates:
            return (h, c), {"f": f, "i": i, "o": o, "g": g}
        return h, c

    def extra_repr(self) -> str:
        return f"input_size={self.input_size}, hidden_size={self.hidden_size}"


class GRUCell(nn.Module):
    """One step of a gated recurrent unit, three weight matrices over ``cat(h, x)``.

    Equations of Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder" (2014), as
    the tutorials have them: the reset gate acts on h before the matrix product, and z is the share
    of the new. ``nn.GRUCell`` differs in both: it resets after the product, and its z is the share
    of the old.

    Args:
        input_size: I, features of x.
        hidden_size: H, features of h.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        shape = (hidden_size, hidden_size + input_size)
        self.W_r = nn.Parameter(torch.empty(shape))  # (H, H + I), as the next two
        self.W_z = nn.Parameter(torch.empty(shape))
        self.W_h = nn.Parameter(torch.empty(shape))
        self.b_r = nn.Parameter(torch.zeros(hidden_size))  # (H,), as the next two
        self.b_z = nn.Parameter(torch.zeros(hidden_size))
        self.b_h = nn.Parameter(torch.zeros(hidden_size))
        for weight in (self.W_r, self.W_z, self.W_h):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Advance each row by one step.

        Args:
            x: (B, I), the weights' dtype.
            h: (B, H), the weights' dtype. Not changed.
        Returns:
            h, (B, H).
        """
        hx = torch.cat((h, x), dim=1)  # (B, H + I)
        r = torch.sigmoid(hx @ self.W_r.T + self.b_r)  # (B, H), as the next three
        z = torch.sigmoid(hx @ self.W_z.T + self.b_z)
        candidate = torch.tanh(torch.cat((r * h, x), dim=1) @ self.W_h.T + self.b_h)
        h = (1 - z) * h + z * candidate
        return h

    def extra_repr(self) -> str:
        return f"input_size={self.input_size}, hidden_size={self.hidden_size}"
