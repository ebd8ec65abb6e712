"""LSTM cells by hand: in each an author's habits of spelling and of calling."""

import math
import warnings
from collections import namedtuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import Parameter, ParameterDict, ParameterList

from tests.export.authors.entry import Entry, first, waves

# --- a blog post, "understanding LSTMs by building one" ---


class GateByGateLSTM(nn.Module):
    def __init__(self, n_in, n_hid):
        super(GateByGateLSTM, self).__init__()
        self.n_hid = n_hid
        for gate in ("i", "f", "g", "o"):
            setattr(self, "U_" + gate, Parameter(torch.empty(n_in, n_hid)))
            setattr(self, "V_" + gate, Parameter(torch.empty(n_hid, n_hid)))
            setattr(self, "b_" + gate, Parameter(torch.empty(n_hid)))
        bound = 1.0 / math.sqrt(n_hid)
        for w in self.parameters():
            w.data.uniform_(-bound, bound)

    def forward(self, x, init_states=None):
        """x: (batch, seq, features)"""
        bs, seq, _ = x.size()
        outputs = []
        if init_states is None:
            h_t = torch.zeros(bs, self.n_hid).to(x.device)
            c_t = torch.zeros(bs, self.n_hid).to(x.device)
        else:
            h_t, c_t = init_states
        for t in range(seq):
            x_t = x[:, t, :]
            i_t = torch.sigmoid(x_t @ self.U_i + h_t @ self.V_i + self.b_i)
            f_t = torch.sigmoid(x_t @ self.U_f + h_t @ self.V_f + self.b_f)
            g_t = torch.tanh(x_t @ self.U_g + h_t @ self.V_g + self.b_g)
            o_t = torch.sigmoid(x_t @ self.U_o + h_t @ self.V_o + self.b_o)
            c_t = f_t * c_t + i_t * g_t
            h_t = o_t * torch.tanh(c_t)
            outputs.append(h_t.unsqueeze(0))
        outputs = torch.cat(outputs, dim=0).transpose(0, 1).contiguous()
        return outputs, (h_t, c_t)


# --- a benchmark of scripted cells: time first, the output doubled in the state ---


class ScriptedCell(nn.Module):
    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.weight_ih = Parameter(torch.randn(4 * hidden_size, input_size) * 0.4)
        self.weight_hh = Parameter(torch.randn(4 * hidden_size, hidden_size) * 0.25)
        self.bias_ih = Parameter(torch.randn(4 * hidden_size) * 0.1)
        self.bias_hh = Parameter(torch.randn(4 * hidden_size) * 0.1)

    def forward(
        self, input: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hx, cx = state
        gates = (
            torch.mm(input, self.weight_ih.t())
            + self.bias_ih
            + torch.mm(hx, self.weight_hh.t())
            + self.bias_hh
        )
        ingate, forgetgate, cellgate, outgate = gates.chunk(4, 1)
        cy = torch.sigmoid(forgetgate) * cx + torch.sigmoid(ingate) * torch.tanh(cellgate)
        hy = torch.sigmoid(outgate) * torch.tanh(cy)
        return hy, (hy, cy)


def scripted_cell():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have no scripts
        return torch.jit.script(ScriptedCell(3, 12))


def run_scripted(cell, x):
    h = torch.zeros(x.shape[0], 12)
    state = (h, h)
    out = []
    for step in x.unbind(1):
        y, state = cell(step, state)
        out.append(y)
    return torch.stack(out, 1)


# --- somebody who comes from TensorFlow 1: one kernel, gates i j f o, forget bias, (c, h) ---


LSTMStateTuple = namedtuple("LSTMStateTuple", ["c", "h"])


class BasicLSTMCell(nn.Module):
    def __init__(self, in_dim, num_units, forget_bias=1.0):
        super(BasicLSTMCell, self).__init__()
        self._num_units = num_units
        self._forget_bias = forget_bias
        self.kernel = Parameter(torch.empty(in_dim + num_units, 4 * num_units))
        self.bias = Parameter(torch.zeros(4 * num_units))
        nn.init.xavier_uniform_(self.kernel)

    def zero_state(self, batch_size):
        z = torch.zeros(batch_size, self._num_units)
        return LSTMStateTuple(z, z)

    def forward(self, inputs, state):
        c, h = state
        concat = torch.matmul(torch.cat([inputs, h], 1), self.kernel) + self.bias
        i, j, f, o = torch.split(concat, self._num_units, dim=1)
        new_c = c * torch.sigmoid(f + self._forget_bias) + torch.sigmoid(i) * torch.tanh(j)
        new_h = torch.tanh(new_c) * torch.sigmoid(o)
        return new_h, LSTMStateTuple(new_c, new_h)


def run_basic(cell, x):
    state = cell.zero_state(x.size(0))
    hs = []
    for t in range(x.size(1)):
        h, state = cell(x[:, t], state)
        hs.append(h)
    return torch.stack(hs, dim=1)


# --- lecture notes in numpy, carried over: columns, and weights that are no parameters ---


class ColumnLSTM(nn.Module):
    """x is (features, batch), as in the lecture"""

    def __init__(self, D, H):
        super().__init__()
        Z = H + D
        self.H = H
        self.Wf = torch.randn(H, Z) / math.sqrt(Z)
        self.Wi = torch.randn(H, Z) / math.sqrt(Z)
        self.Wc = torch.randn(H, Z) / math.sqrt(Z)
        self.Wo = torch.randn(H, Z) / math.sqrt(Z)
        self.bf = torch.ones(H, 1)
        self.bi, self.bc, self.bo = (0.1 * torch.randn(H, 1) for _ in range(3))
        self.Wy = torch.randn(2, H) / math.sqrt(H)
        self.by = torch.zeros(2, 1)

    def forward(self, x, h_old, c_old):
        X = torch.vstack((h_old, x))
        hf = torch.sigmoid(self.Wf @ X + self.bf)
        hi = torch.sigmoid(self.Wi @ X + self.bi)
        ho = torch.sigmoid(self.Wo @ X + self.bo)
        hc = torch.tanh(self.Wc @ X + self.bc)
        c = hf * c_old + hi * hc
        h = ho * torch.tanh(c)
        y = self.Wy @ h + self.by
        return y, h, c


def run_columns(model, x):
    h = c = torch.zeros(model.H, x.shape[0])
    ys = []
    for t in range(x.shape[1]):
        y, h, c = model(x[:, t].T, h, c)
        ys.append(y.T)
    return torch.stack(ys, 1)


# --- a stack with a list of (h, c), filled in place ---


class DeepLSTM(nn.Module):
    def __init__(self, n_in=3, hidden=(12, 8), n_out=2):
        super().__init__()
        sizes = [n_in, *hidden]
        self.hidden = hidden
        self.layers = nn.ModuleList(
            [nn.LSTMCell(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        )
        self.drop = nn.Dropout(0.25)
        self.proj = nn.Linear(hidden[-1], n_out)

    def init_hidden(self, bsz):
        return [(torch.zeros(bsz, n), torch.zeros(bsz, n)) for n in self.hidden]

    def forward(self, inp, hidden):
        for i, layer in enumerate(self.layers):
            hidden[i] = layer(inp, hidden[i])
            inp = self.drop(hidden[i][0])
        return self.proj(inp), hidden


def run_deep(model, x):
    hidden = model.init_hidden(x.size(0))
    out = []
    for t in range(x.size(1)):
        y, hidden = model(x[:, t], hidden)
        out.append(y)
    return torch.stack(out, 1)


# --- the state of everything in one vector ---


class OneVectorCell(nn.Module):
    """state = [c | h], so that a generic `RNN(cell)` wrapper can hold any cell"""

    def __init__(self, in_features, units):
        super().__init__()
        self.units = units
        self.state_size = 2 * units
        self.lin = nn.Linear(in_features + units, 4 * units)

    def forward(self, x, state):
        c, h = state[:, : self.units], state[:, self.units :]
        z = self.lin(torch.cat((x, h), dim=-1))
        z_in, z_out, z_forget, z_new = torch.tensor_split(z, 4, dim=-1)
        c = z_forget.sigmoid().mul(c).add(z_in.sigmoid().mul(z_new.tanh()))
        h = z_out.sigmoid() * c.tanh()
        return h, torch.cat((c, h), dim=-1)


def run_one_vector(cell, x):
    state = x.new_zeros(len(x), cell.state_size)
    outs = []
    for x_t in torch.unbind(x, dim=1):
        out, state = cell(x_t, state)
        outs.append(out)
    return torch.stack(outs, dim=1)


# --- four states, flat; two layers written out by hand ---


class TwoLayersFlat(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm1 = nn.LSTMCell(2, 16)
        self.lstm2 = nn.LSTMCell(16, 16)
        self.linear = nn.Linear(16, 1)

    def forward(self, input_t, h_t, c_t, h_t2, c_t2):
        h_t, c_t = self.lstm1(input_t, (h_t, c_t))
        h_t2, c_t2 = self.lstm2(h_t, (h_t2, c_t2))
        output = self.linear(h_t2)
        return output, h_t, c_t, h_t2, c_t2


def run_flat(model, x):
    state = [torch.zeros(x.size(0), 16) for _ in range(4)]
    ys = []
    for x_t in x.split(1, dim=1):
        y, *state = model(x_t.squeeze(1), *state)
        ys.append(y)
    return torch.stack(ys, 1)


# --- keywords in, a dict out ---


class DictCell(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.w = ParameterDict(
            {
                "x": Parameter(torch.randn(cfg["gates"], cfg["inp"], cfg["hid"]) * 0.4),
                "h": Parameter(torch.randn(cfg["gates"], cfg["hid"], cfg["hid"]) * 0.3),
                "b": Parameter(torch.zeros(cfg["gates"], 1, cfg["hid"])),
            }
        )

    def forward(self, *, inputs, carry):
        zx = torch.einsum("bi,gih->gbh", inputs, self.w["x"])
        zh = torch.einsum("bk,gkh->gbh", carry["h"], self.w["h"])
        f, i, o, u = zx + zh + self.w["b"]
        c = torch.sigmoid(f) * carry["c"] + torch.sigmoid(i) * torch.tanh(u)
        h = torch.sigmoid(o) * torch.tanh(c)
        return {"output": h, "carry": {"h": h, "c": c}}


def dict_cell():
    return DictCell({"inp": 3, "hid": 10, "gates": 4})


def run_dict(cell, x):
    zeros = torch.zeros(x.size(0), 10)
    carry = {"h": zeros, "c": zeros}
    ys = []
    for t in range(x.size(1)):
        out = cell(inputs=x[:, t], carry=carry)
        carry = out["carry"]
        ys.append(out["output"])
    return torch.stack(ys, 1)


# --- ParameterList, states stacked on the first axis, in-place activations ---


class StackedStateLSTM(nn.Module):
    """state: (2, batch, hidden); weights in a ParameterList: [Wx, Wh, b]"""

    def __init__(self, n_in, n_hidden):
        super().__init__()
        self.n = n_hidden
        self.weights = ParameterList(
            [
                Parameter(torch.randn(n_in, 4, n_hidden) * 0.4),
                Parameter(torch.randn(n_hidden, 4, n_hidden) * 0.3),
                Parameter(torch.zeros(4, n_hidden)),
            ]
        )

    def forward(self, x, state):
        Wx, Wh, b = self.weights
        h, c = state.unbind(0)
        a = torch.tensordot(x, Wx, 1) + torch.tensordot(h, Wh, 1) + b
        a[:, 1:].sigmoid_()
        u, i, f, o = a.unbind(1)
        c = torch.addcmul(f * c, i, u.tanh_())
        h = o * c.tanh()
        return torch.stack([h, c])


def run_stacked(cell, x):
    state = torch.zeros(2, x.size(0), cell.n)
    states = []
    for t in range(x.size(1)):
        state = cell(x[:, t], state)
        states.append(state.transpose(0, 1))
    return torch.stack(states, 1)


device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


ENTRIES = {
    "gate-by-gate": Entry(lambda: GateByGateLSTM(3, 12), waves(3), first),
    "scripted": Entry(scripted_cell, waves(3), run_scripted),
    "tf-basic": Entry(lambda: BasicLSTMCell(3, 12), waves(3), run_basic),
    "columns": Entry(
        lambda: ColumnLSTM(3, 10),
        waves(3),
        run_columns,
        "x, h, c -> y, h, c",
    ),
    "list-of-pairs": Entry(
        DeepLSTM,
        waves(3),
        run_deep,
        "x, ((h1, c1), (h2, c2)) -> y, ((h1, c1), (h2, c2))",
    ),
    "one-vector": Entry(lambda: OneVectorCell(3, 12), waves(3), run_one_vector),
    "flat-four": Entry(TwoLayersFlat, waves(2), run_flat, "x, h1, c1, h2, c2 -> y, h1, c1, h2, c2"),
    "dict-cell": Entry(
        dict_cell,
        waves(3),
        run_dict,
        "inputs=x, carry={h: h, c: c} -> {output: y, carry: {h: h, c: c}}",
    ),
    "stacked-state": Entry(
        lambda: StackedStateLSTM(3, 12),
        waves(3),
        run_stacked,
    ),
}
