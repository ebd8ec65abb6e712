"""Every kind of link, by its name; a kind of another package is imported when it is used."""

from benchmarks.wire.frame_links import BinaryLink, OwnTextLink, TextLink
from benchmarks.wire.http_links import HttpLink, NdjsonLink, V2BinaryLink, V2Link
from benchmarks.wire.link import Link

OWN: dict[str, type[Link]] = {
    "http": HttpLink,
    "v2": V2Link,
    "v2 binary": V2BinaryLink,
    "ndjson": NdjsonLink,
    "own text frames": OwnTextLink,
    "text frames": TextLink,
    "binary frames": BinaryLink,
}
TRITON = ("triton http", "triton grpc", "triton stream")
LINKS = (*OWN, *TRITON)


def kind_of(name: str) -> type[Link]:
    """The kind of that name in LINKS."""
    if name in OWN:
        return OWN[name]
    # A second of imports, which the other links do not wait for.
    from benchmarks.wire.triton_links import TritonGrpcLink, TritonHttpLink, TritonStreamLink

    return dict(zip(TRITON, (TritonHttpLink, TritonGrpcLink, TritonStreamLink), strict=True))[name]
