"""Snapshots as files: what is in them, who reads them, and what is refused."""

import os
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from safetensors import safe_open
from safetensors.numpy import load

from service.errors import (
    IncompatibleError,
    NoSnapshotKeyError,
    OtherTenantError,
    SettingsError,
    SignatureError,
    SnapshotError,
)
from service.model import Model
from service.session import LastReply, Record, SessionKey
from service.snapshot import (
    KEY_FILE,
    Keyring,
    open_keyring,
    read_snapshot,
    record_of,
    write_snapshot,
)

KEY = SessionKey("acme", "pump-7/é")
RING = Keyring((b"a" * 32,))
NOW = datetime(2026, 11, 24, 12, 0, 5, tzinfo=UTC)


@pytest.fixture
def record(sine: Model) -> Record:
    x = np.random.default_rng(0).normal(size=(5, 1))
    (y,), (state,), _ = sine.run([sine.encode(x)], [sine.initial_state])
    last = LastReply(38, b"d" * 16, y.tobytes(), created=False)
    return Record(7, sine.name, sine.version, 43, state, last)


def test_a_snapshot_comes_back_whole(sine: Model, record: Record) -> None:
    """Every field of the record but the birth, which is another life's."""
    raw = write_snapshot(KEY, record, RING, NOW)
    snapshot = read_snapshot(raw, "acme", RING)
    assert record_of(snapshot, sine.artifact.layout, birth=9) == structs.replace(record, birth=9)


def test_a_snapshot_holds_the_idempotency_key_and_the_restart_where_there_were(
    sine: Model, record: Record
) -> None:
    """And is otherwise what it was before there were any, so older files are read too."""
    last = structs.replace(record.last, created=True, restarted=True, key_digest=b"k" * 16)
    raw = write_snapshot(KEY, structs.replace(record, last=last), RING, NOW)
    assert read_snapshot(raw, "acme", RING).last == last
    plain = write_snapshot(KEY, record, RING, NOW)
    assert b"last_restarted" not in plain
    assert b"last_key_digest" not in plain


def test_the_package_safetensors_reads_it(sine: Model, record: Record, tmp_path: Path) -> None:
    """The state's tensors under their names, and the rest as metadata."""
    raw = write_snapshot(KEY, record, RING, NOW)
    tensors = load(raw)
    state = sine.artifact.layout.unpack([record.state])
    assert set(tensors) == {*state, "carousel.last_y", "carousel.signature"}
    for name, value in state.items():
        assert np.array_equal(tensors[name], value[0])
    assert tensors["carousel.last_y"].tobytes() == record.last.y
    assert tensors["carousel.signature"].tobytes() == raw[-32:]
    file = tmp_path / "snapshot.safetensors"
    file.write_bytes(raw)
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    assert metadata == {
        "format": "carousel-session-1",
        "model": sine.name,
        "version": sine.version,
        "tenant": "acme",
        "session_id": "pump-7/é",
        "step": "43",
        "created_at": "2026-11-24T12:00:05+00:00",
        "last_step": "38",
        "last_digest": "64" * 16,
        "last_created": "false",
    }


def test_any_changed_byte_is_found(record: Record) -> None:
    """Each byte of the file, the signature's too; and each length shorter."""
    raw = write_snapshot(KEY, record, RING, NOW)
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(SignatureError):
            read_snapshot(changed, "acme", RING)
    for size in range(40, len(raw), 7):
        with pytest.raises(SignatureError, match="was changed, or was signed with a key"):
            read_snapshot(raw[:size], "acme", RING)
    with pytest.raises(SnapshotError, match="the body has 3 bytes"):
        read_snapshot(raw[:3], "acme", RING)


def test_keys_are_rotated_by_putting_a_new_one_first(record: Record) -> None:
    """The first signs, all verify, and one that was taken away does not."""
    old = write_snapshot(KEY, record, RING, NOW)
    both = Keyring((b"b" * 32, b"a" * 32))
    assert read_snapshot(old, "acme", both).step == 43
    new = write_snapshot(KEY, record, both, NOW)
    assert read_snapshot(new, "acme", Keyring((b"b" * 32,))).step == 43
    with pytest.raises(SignatureError):
        read_snapshot(new, "acme", RING)


def test_another_tenants_snapshot_is_refused(record: Record) -> None:
    """Though its signature is right."""
    raw = write_snapshot(KEY, record, RING, NOW)
    with pytest.raises(OtherTenantError, match="another tenant"):
        read_snapshot(raw, "", RING)


def test_states_of_other_ports_are_refused(series: Model, record: Record, sine: Model) -> None:
    """With the ports that differ: the file's own version says so, not its name."""
    raw = write_snapshot(KEY, record, RING, NOW)
    snapshot = read_snapshot(raw, "acme", RING)
    h, c = snapshot.tensors["h"], snapshot.tensors["c"]
    other = replace(snapshot, tensors={"h": (h[0], [1, 9], h[2]), "c": c})
    with pytest.raises(IncompatibleError, match="the snapshot's states are") as caught:
        record_of(other, sine.artifact.layout, 1)
    assert caught.value.data["ports"] == [
        {"port": "h", "got": ("F32", [1, 9]), "expected": ("F32", [1, 8])}
    ]


def test_without_a_key_nothing_is_signed_or_read(record: Record) -> None:
    """The message says which setting helps."""
    raw = write_snapshot(KEY, record, RING, NOW)
    with pytest.raises(NoSnapshotKeyError, match="set CAROUSEL_SNAPSHOT_KEY to the same 32 bytes"):
        write_snapshot(KEY, record, Keyring(()), NOW)
    with pytest.raises(NoSnapshotKeyError):
        read_snapshot(raw, "acme", Keyring(()))


def test_the_keyring_of_a_service(tmp_path: Path) -> None:
    """What is configured; else the store's own key; else a key that dies with the process."""
    one, two = "x" * 32, "y" * 40
    assert open_keyring([one, two], tmp_path, False).keys == (one.encode(), two.encode())
    assert not list(tmp_path.iterdir())
    own = open_keyring([], tmp_path, False)
    assert open_keyring([], tmp_path, False) == own
    assert [file.name for file in tmp_path.iterdir()] == [KEY_FILE]
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert len(own.keys[0]) == 64
    lonely = open_keyring([], None, False)
    assert len(lonely.keys[0]) == 32
    assert open_keyring([], None, False) != lonely
    assert open_keyring([], None, True) == Keyring(())


def test_a_key_file_that_others_can_read_stops_the_start(tmp_path: Path) -> None:
    """Nor one that is too short."""
    open_keyring([], tmp_path, False)
    (tmp_path / KEY_FILE).chmod(0o644)
    with pytest.raises(SettingsError, match="can be read by others"):
        open_keyring([], tmp_path, False)
    (tmp_path / KEY_FILE).chmod(0o600)
    (tmp_path / KEY_FILE).write_bytes(b"short")
    with pytest.raises(SettingsError, match=r"snapshot.key has 5 bytes, expected 32 or more"):
        open_keyring([], tmp_path, False)
    assert os.listdir(tmp_path) == [KEY_FILE]
