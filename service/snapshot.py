"""A session as a file: everything of its record, signed by the server.

Rules
- The file is a safetensors file: the state's tensors under their own names, and two of ours (U8):
  `carousel.last_y`, the bytes of the last reply, and `carousel.signature`. The rest is text in the
  metadata. Whatever reads safetensors reads it.
- The signature is the last tensor, 32 bytes, at the end of the file: HMAC-SHA256, with the
  server's key, of every byte before it. It is verified, in constant time, before a byte is read.
- Which variant computed the state is not in it: all variants of a model's version take the state.
- Several keys: the first signs, all verify. So a key is rotated by putting a new one before it.

Metadata: `format` ("carousel-session-1"), `model`, `version`, `tenant`, `session_id`, `step`,
`created_at` (UTC, ISO 8601), `last_step`, `last_digest` (hex), `last_created` ("true", "false").
Only where there is something to say: `last_restarted` ("true"), `last_key_digest` (hex).
"""

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.config import MIN_KEY_BYTES
from service.errors import (
    IncompatibleError,
    NoSnapshotKeyError,
    OtherTenantError,
    SettingsError,
    SignatureError,
    SnapshotError,
)
from service.layout import SAFETENSORS_DTYPES, StateLayout
from service.session import LastReply, Record, SessionKey

FORMAT = "carousel-session-1"
SIGNATURE_BYTES = 32
LAST_Y, SIGNATURE = "carousel.last_y", "carousel.signature"
KEY_FILE = "snapshot.key"
OWN = (LAST_Y, SIGNATURE)
_LENGTH_BYTES = 8  # of a safetensors file's header, at its start


@dataclass(frozen=True)
class Keyring:
    """The keys that snapshots are signed with; none where servers would not have them in common."""

    keys: tuple[bytes, ...]

    def sign(self, message: bytes) -> bytes:
        if not self.keys:
            raise NoSnapshotKeyError(
                "there is no key to sign snapshots with; set CAROUSEL_SNAPSHOT_KEY to the same "
                f"{MIN_KEY_BYTES} bytes or more for all servers that share the store"
            )
        return _hmac(self.keys[0], message)

    def verify(self, message: bytes, signature: bytes) -> None:
        """SignatureError unless one of the keys made `signature`; NoSnapshotKeyError."""
        self.sign(b"")  # or there is none
        found = [hmac.compare_digest(_hmac(key, message), signature) for key in self.keys]
        if not any(found):
            raise SignatureError(
                f"the snapshot of {len(message) + len(signature)} bytes was changed, or was signed "
                "with a key that is not among this server's CAROUSEL_SNAPSHOT_KEY"
            )


@dataclass(frozen=True)
class Snapshot:
    """What a verified file says."""

    model: str
    version: str
    step: int
    last: LastReply
    tensors: dict[str, tuple[str, list[int], bytes]]  # state -> dtype, shape, values


def write_snapshot(key: SessionKey, record: Record, keyring: Keyring, now: datetime) -> bytes:
    """The session `key` as a file.

    Raises:
        NoSnapshotKeyError: there is no key to sign it with.
    """
    header, data = _split(record.state)
    metadata = {
        "format": FORMAT,
        "model": record.model,
        "version": record.version,
        "tenant": key.tenant,
        "session_id": key.session_id,
        "step": str(record.step),
        "created_at": now.astimezone(UTC).isoformat(timespec="seconds"),
        "last_step": str(record.last.step),
        "last_digest": record.last.digest.hex(),
        "last_created": "true" if record.last.created else "false",
    }
    if record.last.restarted:
        metadata["last_restarted"] = "true"
    if record.last.key_digest:
        metadata["last_key_digest"] = record.last.key_digest.hex()
    entries: dict[str, Any] = {"__metadata__": metadata, **header}
    at = len(data)
    for name, size in ((LAST_Y, len(record.last.y)), (SIGNATURE, SIGNATURE_BYTES)):
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the spec aligns the data at 8 bytes with spaces
    message = len(text).to_bytes(_LENGTH_BYTES, "little") + text + data + record.last.y
    return message + keyring.sign(message)


def read_snapshot(raw: bytes, tenant: str, keyring: Keyring) -> Snapshot:
    """What `write_snapshot` wrote.

    Raises:
        SignatureError: a byte was changed, or the key is another's. Fetch it again.
        SnapshotError: it is no snapshot, or one of another format.
        OtherTenantError: it is another tenant's.
        NoSnapshotKeyError: there is no key to verify it with.
    """
    if len(raw) < _LENGTH_BYTES + SIGNATURE_BYTES:
        raise SnapshotError(
            f"the body has {len(raw)} bytes, expected a snapshot as GET /sessions/{{id}}/snapshot "
            "gives it"
        )
    keyring.verify(raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:])
    header, data = _split(raw)  # it is ours: the signature says so
    metadata = header.pop("__metadata__")
    if metadata["format"] != FORMAT:
        raise SnapshotError(f"the snapshot has format {metadata['format']}, expected {FORMAT}")
    if metadata["tenant"] != tenant:
        raise OtherTenantError("the snapshot is of another tenant's session")
    values = {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }
    last = LastReply(
        step=int(metadata["last_step"]),
        digest=bytes.fromhex(metadata["last_digest"]),
        y=values[LAST_Y][2],
        created=metadata["last_created"] == "true",
        restarted=metadata.get("last_restarted") == "true",
        key_digest=bytes.fromhex(metadata.get("last_key_digest", "")),
    )
    tensors = {name: value for name, value in values.items() if name not in OWN}
    step = int(metadata["step"])
    return Snapshot(metadata["model"], metadata["version"], step, last, tensors)


def record_of(snapshot: Snapshot, layout: StateLayout, birth: int) -> Record:
    """The snapshot as a record of a model whose states are `layout`.

    Raises:
        IncompatibleError: its tensors are not this model's states; the ports that differ.
    """
    wanted = {
        port.name: (SAFETENSORS_DTYPES[port.dtype], [int(dim) for dim in port.shape[1:]])
        for port in layout.ports
    }
    held = {name: (dtype, shape) for name, (dtype, shape, _) in snapshot.tensors.items()}
    if held != wanted:
        names = sorted(held.keys() | wanted.keys())
        differing = [
            {"port": name, "got": held.get(name), "expected": wanted.get(name)}
            for name in names
            if held.get(name) != wanted.get(name)
        ]
        raise IncompatibleError(
            f"the snapshot's states are {held}, those of {snapshot.model}:{snapshot.version} here "
            f"are {wanted}",
            ports=differing,
        )
    state = layout.join({name: values for name, (_, _, values) in snapshot.tensors.items()})
    return Record(birth, snapshot.model, snapshot.version, snapshot.step, state, snapshot.last)


def open_keyring(keys: Sequence[str], directory: Path | None, shared: bool) -> Keyring:
    """The keys of a service.

    Args:
        keys: as configured, the one that signs first.
        directory: of a store on this machine's disk, which keeps a key of its own, made once.
        shared: whether other machines share the store, so that a key made here is of no use.
    Raises:
        SettingsError: the directory's key cannot be read or made.
    """
    if keys:
        return Keyring(tuple(key.encode() for key in keys))
    if directory is not None:
        return Keyring((_own_key(directory / KEY_FILE),))
    return Keyring(() if shared else (secrets.token_bytes(MIN_KEY_BYTES),))


def _own_key(file: Path) -> bytes:
    """The key in `file`, made by whichever worker comes first."""
    try:
        if not file.exists():
            mine = file.with_name(f".{file.name}.{os.getpid()}")
            descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                out.write(secrets.token_hex(MIN_KEY_BYTES).encode())
                out.flush()
                os.fsync(out.fileno())
            try:
                os.link(mine, file)  # whole or not at all, and only one of them
            except FileExistsError:
                pass
            finally:
                mine.unlink()
        key = file.read_bytes()
    except OSError as error:
        raise SettingsError(f"{file} cannot be read or made ({error.strerror})") from error
    if len(key) < MIN_KEY_BYTES:
        raise SettingsError(f"{file} has {len(key)} bytes, expected {MIN_KEY_BYTES} or more")
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsError(f"{file} can be read by others; `chmod 600` it, or better a new key")
    return key


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, hashlib.sha256)


def _split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header and data."""
    at = _LENGTH_BYTES + int.from_bytes(raw[:_LENGTH_BYTES], "little")
    return json.loads(raw[_LENGTH_BYTES:at]), raw[at:]
