"""A trained module -> an artifact: adapt, lower, quantize, prove, write.

Imports run left to right only (`service` stands for its artifact, pipeline and runtime):

errors <- source, call <- reference <- form <- network <- onnx_graph, rowwise, torchscript
    <- parity <- report <- write, publish <- __main__
"""
