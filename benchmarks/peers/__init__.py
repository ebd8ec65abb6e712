"""`python -m benchmarks.peers`: Carousel beside what a user would pick instead.

The same weights and the same client for everybody, in one interleaved run. Inside:

    contestants who takes part, how each is started, and which ways it can be asked
    venvs       an environment of its own for each peer, of pinned versions
    stage       where they run
    checks      who loses what
    measure     the rounds
    verdict     what was aimed at: met, or missed by how much
    report      tables, JSON, plot
    apps/       the peers' services, each as its own documentation writes one

What asks them is benchmarks/wire.
"""
