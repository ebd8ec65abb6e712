"""A trained module -> an artifact: adapt, lower, quantize, prove, write.

Imports run left to right only; each package says its own order:

errors, reference, lowered <- weights <- source <- algebra <- calling <- streaming
    <- graphs <- onnx_in <- finding, lowering, model_input <- cases, isolation, gate_errors, timing,
    variants, placing <- parity, draft <- reporting <- exporter, publish <- __main__
"""
