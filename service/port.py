"""The port of a protocol that listens by itself, beside the one that the host opens: of gRPC.

Every worker opens it for itself, and the kernel gives each new connection to one of them
(SO_REUSEPORT). With that option a port is never "taken" by a process of the same user: a second
service would get half of the first one's connections, and nobody would be told. So the process that
starts the workers looks first whether anybody has the port, without the option, and then holds it
as long as it lives, bound with the option and not listening, which gets no connections.
"""

import os
import socket
from contextlib import ExitStack

from service.errors import SettingsError

_HOST = "_CAROUSEL_GRPC_HOST"  # not of CAROUSEL_*: no setting
_held: list[socket.socket] = []  # by this process, until it ends


def hold_port(host: str, port: int, http_port: int, setting: str) -> None:
    """In the process that starts the workers: keep `port` for them, and tell them the host.

    Args:
        http_port: where the host will listen.
        setting: the name of what chooses `port`.
    Raises:
        SettingsError: somebody has the port, or it may not be had.
    """
    if port == http_port:
        raise SettingsError(
            f"{setting}={port} is where HTTP listens; set it to another port, or to 0 for no gRPC"
        )
    while _held:  # of a service that this process ran before
        _held.pop().close()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            # A connection of an earlier life that is still closing is not somebody.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        with ExitStack() as stack:
            holder = stack.enter_context(socket.socket(family))
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind((host, port))
            stack.pop_all()
    except OSError as error:
        raise SettingsError(
            f"{setting}={port}: {host} port {port} cannot be had ({error.strerror}); is another "
            f"service running? Set {setting} to another port, or to 0 for no gRPC"
        ) from error
    _held.append(holder)
    os.environ[_HOST] = host


def told_host() -> str:
    """In a worker: where to listen; this machine alone where nobody said."""
    return os.environ.get(_HOST, "127.0.0.1")


def address_of(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
