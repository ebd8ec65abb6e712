"""Text: ids in, scores out."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.export.authors.entry import Entry, road, tokens, waves, whole, windows


class TextGenerator(nn.Module):
    """tied weights, and scores flattened for the loss: (batch * time, vocabulary)"""

    def __init__(self, vocab=20, emb=12, layers=2):
        super().__init__()
        self.vocab, self.emb, self.layers = vocab, emb, layers
        self.encoder = nn.Embedding(vocab, emb)
        self.drop = nn.Dropout(0.5)
        self.rnn = nn.LSTM(emb, emb, layers, dropout=0.5, batch_first=True)
        self.decoder = nn.Linear(emb, vocab)
        self.decoder.weight = self.encoder.weight

    def init_hidden(self, bsz):
        weight = next(self.parameters())
        return (
            weight.new_zeros(self.layers, bsz, self.emb),
            weight.new_zeros(self.layers, bsz, self.emb),
        )

    def forward(self, input, hidden):
        emb = self.drop(self.encoder(input))
        output, hidden = self.rnn(emb, hidden)
        output = self.drop(output)
        decoded = self.decoder(output.contiguous().view(-1, self.emb))
        return decoded.view(-1, self.vocab), hidden


def run_text(net, x):
    scores, _ = net(x, net.init_hidden(len(x)))
    return scores.view(*x.shape, net.vocab)


class BiTagger(nn.Module):
    def __init__(self, vocab=20, tags=5):
        super().__init__()
        self.emb = nn.Embedding(vocab, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, 8, bidirectional=True, batch_first=True)
        self.hidden2tag = nn.Linear(16, tags)

    def forward(self, sentence):
        out, _ = self.lstm(self.emb(sentence))
        return F.log_softmax(self.hidden2tag(out), dim=2)


class PackedSentiment(nn.Module):
    """sentences of several lengths, packed; batch of one would lose its axis to squeeze()"""

    def __init__(self, vocab=20):
        super().__init__()
        self.embedding = nn.Embedding(vocab, 8)
        self.rnn = nn.LSTM(8, 12, num_layers=2, batch_first=True)
        self.fc = nn.Linear(12, 1)

    def forward(self, text, lengths):
        packed = pack_padded_sequence(
            self.embedding(text), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, (hidden, _) = self.rnn(packed)
        return torch.sigmoid(self.fc(hidden[-1])).squeeze()


def run_sentiment(net, x):
    lengths = range(1, x.shape[1] + 1)
    y = [net(x[:, :n], torch.full((len(x),), n)).reshape(len(x)) for n in lengths]
    return torch.stack(y, 1)


class PackedInside(nn.Module):
    """packs for speed although every row is whole"""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 12, batch_first=True)
        self.fc = nn.Linear(12, 2)

    def forward(self, x):
        lengths = torch.full((x.size(0),), x.size(1), dtype=torch.long)
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        out, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.fc(out)


ENTRIES = {
    "text": Entry(
        TextGenerator,
        tokens(20),
        run_text,
        "X, (h, c) -> Y, (h, c)",
        gain=1.0,
    ),
    "tagger": Entry(
        BiTagger,
        tokens(20),
        windows(12, lambda y: y[:, -1]),
        window=12,
        roads=road("general"),
    ),
    "packed-sentiment": Entry(
        PackedSentiment,
        tokens(20),
        run_sentiment,
        "X, lengths -> y",
    ),
    "packed-inside": Entry(PackedInside, waves(3), whole),
}
