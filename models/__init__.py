"""What was trained: cells, networks, and their training on a sine wave and on a real series.

Knows torch; knows nothing of ``export`` or ``service``. Read it as ``cells <- networks <- zoo``
and ``data, naive <- evaluate <- train``; the command is ``python -m models.train NAME``.

Shape letters: B batch, T time, I input, O output, H hidden, L layers.
"""
