"""Every kind of link, by its name in `contestants`."""

from benchmarks.peers.frame_links import BinaryLink, OwnTextLink, TextLink
from benchmarks.peers.http_links import HttpLink, NdjsonLink, V2BinaryLink, V2Link
from benchmarks.peers.link import Link

LINKS: dict[str, type[Link]] = {
    "http": HttpLink,
    "v2": V2Link,
    "v2 binary": V2BinaryLink,
    "ndjson": NdjsonLink,
    "own text frames": OwnTextLink,
    "text frames": TextLink,
    "binary frames": BinaryLink,
}
