"""The messages of v2 over gRPC: our own .proto files, and the Python that `make protos` makes."""
