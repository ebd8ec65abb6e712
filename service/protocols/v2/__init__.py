"""The Open Inference Protocol, version 2, with Triton's extensions, for HTTP and gRPC alike.

The order inside: datatypes <- messages <- inference, metadata <- the codecs. What a request means,
what a reply holds, and what a server says of its models stands here once; a codec only turns bytes
into messages and back.
"""
