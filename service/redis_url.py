"""What CAROUSEL_REDIS_URL may be, and how it is shown: without its password."""

from urllib.parse import urlsplit

CLUSTER = "+cluster"  # of a scheme: it is a cluster, and need not be asked
SCHEMES = ("redis", "rediss", "unix", f"redis{CLUSTER}", f"rediss{CLUSTER}")
EXPECTED = "redis://HOST:PORT/0, rediss:// (TLS), unix:///PATH or redis+cluster://HOST:PORT"


def is_redis_url(url: str) -> bool:
    parts = urlsplit(url)
    whole = bool(parts.path) if parts.scheme == "unix" else bool(parts.hostname)
    return parts.scheme in SCHEMES and whole


def without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
