"""The files of the variants: ONNX graphs in float and int8, and TorchScript.

Imports run left to right only:

naming, session, int8_weights, graph_builder <- folding, cell_graph, scan, stock
    <- step_graph, step_model <- bounds, rowwise <- int8_step;
step_program <- step_code, torch_layers <- torchscript; archive; all of them <- operators
"""
