"""Speech: frames in, masks, probabilities or samples out."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.export.authors.entry import Entry, last, road, spectra, waves, whole


class NoiseSuppressor(nn.Module):
    """magnitudes in, enhanced magnitudes out"""

    def __init__(self, bins=17, hidden=16):
        super().__init__()
        self.fc1 = nn.Linear(bins, hidden)
        self.gru = nn.GRU(hidden, hidden, num_layers=2, batch_first=True)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, bins)

    def forward(self, mag):
        feat = torch.log(mag.pow(2).clamp(min=1e-8))
        z = F.relu(self.fc1(feat))
        y, _ = self.gru(z)
        y = F.relu(self.fc2(y + z))
        mask = torch.sigmoid(self.fc3(y))
        return mag * mask


class SeparationBlock(nn.Module):
    """DTLN for real time: one frame a call, the states of both layers in one tensor whose last
    axis is (h, c)"""

    def __init__(self, bins=9, hidden=12, layers=2):
        super().__init__()
        self.layers = layers
        self.rnns = nn.ModuleList(
            nn.LSTM(bins if k == 0 else hidden, hidden, batch_first=True) for k in range(layers)
        )
        self.dense = nn.Linear(hidden, bins)

    def forward(self, frame, in_states):
        # frame: B, 1, bins;  in_states: B, layers, hidden, 2
        x, outs = frame, []
        for k, rnn in enumerate(self.rnns):
            h = in_states[:, k, :, 0].unsqueeze(0).contiguous()
            c = in_states[:, k, :, 1].unsqueeze(0).contiguous()
            x, (h, c) = rnn(x, (h, c))
            outs.append(torch.stack((h[0], c[0]), dim=-1))
        return torch.sigmoid(self.dense(x)) * frame, torch.stack(outs, dim=1)


def run_separation(net, x):
    states = torch.zeros(len(x), 2, 12, 2)
    out = []
    for t in range(x.size(1)):
        y, states = net(x[:, t : t + 1], states)
        out.append(y)
    return torch.cat(out, 1)


class VoiceActivity(nn.Module):
    """a frame of samples in, a probability out; the state stays in the object"""

    def __init__(self, samples=32, hidden=12):
        super().__init__()
        self.stft = nn.Conv1d(1, 8, kernel_size=16, stride=8, bias=False)
        self.lstm = nn.LSTM(8 * 3, hidden, 1)
        self.head = nn.Linear(hidden, 1)
        self.hidden = hidden
        self.reset_states()

    def reset_states(self, batch_size=1):
        self._h = torch.zeros(1, batch_size, self.hidden)
        self._c = torch.zeros(1, batch_size, self.hidden)

    def forward(self, x):
        if self._h.shape[1] != x.shape[0]:
            self.reset_states(x.shape[0])
        z = F.relu(self.stft(x.unsqueeze(1))).flatten(1)
        out, (self._h, self._c) = self.lstm(z.unsqueeze(0), (self._h, self._c))
        return torch.sigmoid(self.head(out[0]))


def run_voice(net, x):
    net.reset_states(len(x))
    return torch.stack([net(x[:, t]) for t in range(x.size(1))], 1)


class KeywordSpotter(nn.Module):
    """two-dimensional patches of mel bands, batch norm, a GRU, scores of the last step"""

    def __init__(self, classes=4):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, (3, 3), stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU6(),
            nn.AdaptiveAvgPool2d((2, 2)),
        )
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.classifier = nn.Linear(16, classes)

    def forward(self, x):
        # x: batch, time, 1, mel, frames
        b, t = x.shape[:2]
        z = self.features(x.view(b * t, *x.shape[2:])).view(b, t, -1)
        _, h = self.gru(z)
        return F.log_softmax(self.classifier(h[-1]), dim=1)


class SampleNet(nn.Module):
    """after WaveRNN: two GRU cells with residuals, flat states, among them the last sample"""

    def __init__(self, cond=6, rnn=12, classes=8):
        super().__init__()
        self.I = nn.Linear(cond + 1, rnn)
        self.rnn1, self.rnn2 = nn.GRUCell(rnn, rnn), nn.GRUCell(rnn, rnn)
        self.fc1, self.fc2 = nn.Linear(rnn, rnn), nn.Linear(rnn, classes)

    def forward(self, m_t, sample, h1, h2):
        x = self.I(torch.cat([sample, m_t], dim=1))
        h1 = self.rnn1(x, h1)
        x = x + h1
        h2 = self.rnn2(x, h2)
        x = x + h2
        logits = self.fc2(F.relu(self.fc1(x)))
        posterior = F.softmax(logits, dim=1)
        levels = torch.linspace(-1, 1, logits.shape[1])
        sample = (posterior * levels).sum(1, keepdim=True)
        return logits, sample, h1, h2


def run_samples(net, x):
    sample, h1, h2 = (torch.zeros(len(x), n) for n in (1, 12, 12))
    out = []
    for t in range(x.size(1)):
        y, sample, h1, h2 = net(x[:, t], sample, h1, h2)
        out.append(y)
    return torch.stack(out, 1)


ENTRIES = {
    "noise-suppressor": Entry(
        NoiseSuppressor,
        spectra(17),
        whole,
        roads=road("gru"),
    ),
    "separation": Entry(
        SeparationBlock,
        spectra(9),
        run_separation,
        "X, s -> Y, s",
        roads=road("general"),  # h and c lie alternately
    ),
    "voice-activity": Entry(
        VoiceActivity,
        waves(32),
        run_voice,
        "x -> y",
    ),
    "keywords": Entry(
        KeywordSpotter,
        waves(1, 8, 6),
        last,
        roads=road("gru"),
    ),
    "samples": Entry(
        SampleNet,
        waves(6),
        run_samples,
        "x, s, h1, h2 -> y, s, h1, h2",
        roads=road("gru", "general"),
    ),
}
