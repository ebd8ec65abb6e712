"""A trained module -> an artifact: adapt, lower, quantize, prove, write.

Imports run left to right only (`service` stands for its artifact, pipeline and runtime):

errors <- source, call, lift, reference <- called <- finding
    <- decompositions <- trace, pointwise <- form <- terms, cells
    <- network <- polynomial <- activations <- recognise
    <- graph_builder <- cell_graph, step_graph <- rowwise, stock, torchscript
    <- lowered <- lowering <- variants, parity, isolation <- report, placing
    <- exporter, publish <- __main__
"""
