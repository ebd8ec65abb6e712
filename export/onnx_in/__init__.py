"""ONNX files that somebody else exported, as sources.

Imports run left to right only:

types, opset, source <- ports, shapes, cells <- reference <- finding <- step
"""
