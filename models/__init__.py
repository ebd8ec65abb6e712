"""What was trained: cells, networks, and their training on a sine wave and on a real series.

Knows torch; knows nothing of ``export`` or ``service``. The command is
``python -m models.train NAME``. Arrows, from what is known to what knows it:

    cells <- networks                                  what is trained
    data, naive, scaling, scores <- forecasting        on what, and how it is judged (a ``task``)
    task <- fitting, runs                              the loop, and the folder that it leaves
    all of these <- zoo <- tables <- train             one entry per model, and the command

Shape letters: B batch, T time, I input, O output, H hidden, L layers.
"""
