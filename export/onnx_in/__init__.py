"""ONNX files that somebody else exported, as sources.

Imports run left to right only:

types, source <- ports, shapes, folding, cells <- reference <- finding <- step
"""
