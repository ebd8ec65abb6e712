"""A trained module -> an artifact: adapt, lower, quantize, prove, write.

Imports run left to right only; each package says its own order:

errors, reference, lowered <- weights <- source <- algebra <- calling <- streaming
    <- graphs <- onnx_in <- finding, lowering, model_input <- spread, running,
    driven, metrics, target <- climate, tolerances <- cases, isolation, gate_errors,
    timing, variants, placing <- measured, scoring <- parity, draft <- reporting <- exporter,
    publish <- __main__
"""
