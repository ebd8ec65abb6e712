"""Where the descriptors of our messages are: a pool of our own.

`inference.ModelInferRequest` is the name that every client of this protocol has its own copy of.
In protobuf's default pool a process that imports two of them fails at the second import, and a
service that calls Triton, or a test, does.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
