"""The files of the variants: ONNX graphs in float and int8, TorchScript, and torch.export's.

Imports run left to right only:

naming, session, int8_weights, graph_builder <- folding, cell_graph, scan, stock
    <- int8_product, step_graph, step_model <- bounds, rowwise, int8_step;
torch_part, torch_layers, archive, step_program <- torch_network, torch_int8, step_code
    <- torchscript, torch_export; all of them <- operators
"""
