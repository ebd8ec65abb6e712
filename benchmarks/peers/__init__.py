"""`python -m benchmarks.peers`: Carousel beside what a user would pick instead.

The same weights and the same client for everybody, in one interleaved run. Inside:

    network     the model, as an artifact, as stock ONNX and as torch weights; the plain loop
    contestants who takes part, how each is started, and which ways it can be asked
    venvs       an environment of its own for each peer, of pinned versions
    servers     a contestant's processes: start, count their CPU time, kill, stop
    link        one connection: how a step is asked and answered, the same code for everybody;
                http_links, frame_links are its kinds, links their names
    load        the load generator, a process of its own
    client      the same links, one awaited step at a time
    checks      who loses what
    measure     the rounds
    report      tables, JSON, plot
    apps/       the peers' services, each as its own documentation writes one
"""
