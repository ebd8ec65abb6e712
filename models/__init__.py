"""What was trained: cells, networks, and their training on real and on generated data.

Knows torch; knows nothing of ``export`` or ``service``. The command is
``python -m models.train NAME``. Arrows, from what is known to what knows it:

    cells <- networks                                  what is trained: states in and out,
    predictors, classifier, autoencoder, char_rnn      and as tutorials have it: states inside
    data <- stock, shapes, faults; text                on what
    data, crops, naive, scaling, scores <-             what for, and how it is judged: each a
        forecasting, windows, classification,          ``task``
        anomaly, language
    task <- fitting, runs                              the loop, and the folder that it leaves
    all of these <- zoo <- tables <- train             one entry per model, and the command

Shape letters: B batch, T time, I input, O output, H hidden, L layers.
"""
