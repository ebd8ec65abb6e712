"""Key files, and the ring that reads them again while it serves."""

import logging
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.errors import SettingsError, UnauthorizedError
from service.key_ring import Caller, KeyRing, digest_of_key, parse_keys
from tests.service.test_engine import Clock

KEY = b"carousel_" + b"k" * 43
OTHER = b"carousel_" + b"o" * 43


def line(key: bytes, tenant: str = "acme", more: str = "") -> str:
    return f'{digest_of_key(key)} = {{ tenant = "{tenant}"{more} }}\n'


def ring(
    path: Path | None, text: str = "", clock: Clock | None = None, most: int | None = None
) -> KeyRing:
    return KeyRing(path, text, most, monotonic=clock or Clock())


def refused(ring: KeyRing, key: bytes) -> str:
    with pytest.raises(UnauthorizedError) as caught:
        ring.find(key)
    return caught.value.message


def test_a_key_is_known_by_its_digest_alone() -> None:
    """What it may do stands beside it; several keys have one tenant."""
    text = line(KEY, more=", admin = true, max_sessions = 3") + line(OTHER)
    keys = ring(None, text, most=7)
    assert KEY.decode() not in text
    assert keys.find(KEY) == Caller("acme", is_admin=True, max_sessions=3)
    assert keys.find(OTHER) == Caller("acme", is_admin=False, max_sessions=7)
    assert ring(None, line(OTHER)).find(OTHER) == Caller("acme")


@pytest.mark.parametrize(
    "key",
    [
        b"",
        KEY[:-1],
        KEY + b"k",
        KEY.upper(),
        KEY + b" ",
        b"\xff" * 52,
        digest_of_key(KEY).encode(),
        b"short",
    ],
)
def test_every_other_key_gets_the_same_refusal(key: bytes) -> None:
    """The digest itself is no key, nor is one that is too short though it stands in the file."""
    keys = ring(None, line(KEY) + line(b"short") + line(b""))
    assert refused(keys, key) == "this API key is not known here; it is mistyped, or revoked"


def test_two_digests_that_begin_alike_are_told_apart() -> None:
    """The first digits only say where to look."""
    false = digest_of_key(KEY)[:8] + "0" * 56
    keys = ring(None, line(KEY) + f'{false} = {{ tenant = "zeta" }}\n')
    assert keys.find(KEY).tenant == "acme"
    assert refused(ring(None, f'{false} = {{ tenant = "zeta" }}'), KEY)


@pytest.mark.parametrize(
    ("expires", "last"),
    [
        ("2027-01-31T12:00:00Z", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31T12:00:00+02:00", datetime(2027, 1, 31, 10, tzinfo=UTC)),
        ("2027-01-31T12:00:00", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
    ],
)
def test_a_key_expires_on_the_second(expires: str, last: datetime) -> None:
    """Without a zone it is UTC; its holder is told."""
    now = Clock(last.timestamp() - 1)
    keys = KeyRing(None, line(KEY, more=f", expires = {expires}"), now=now)
    assert keys.find(KEY).tenant == "acme"
    now.now += 1
    assert "expired on 2027-01-31" in refused(keys, KEY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = ", "keys.toml is not TOML: Invalid value"),
        ('abc = { tenant = "a" }', "has the entry `abc`, expected the SHA-256 of a key, 64"),
        (f'{"A" * 64} = {{ tenant = "a" }}', "lower-case hex digits"),
        (f"{'a' * 64} = {{ }}", "`tenant` of aaaaaaaaaaaa...: Field required"),
        (f'{"a" * 64} = "acme"', "aaaaaaaaaaaa...: Input should be"),
        (line(KEY, tenant=""), "`tenant` of .*String should match"),
        (line(KEY, tenant="a/b"), "String should match pattern"),
        (line(KEY, more=", admin = 1"), "`admin` of .*valid boolean, got 1"),
        (line(KEY, more=", max_sessions = 0"), "`max_sessions` of .*greater than 0, got 0"),
        (line(KEY, more=', expires = "2027-01-31"'), "`expires.*` of .*got '2027-01-31'"),
        (line(KEY, more=", amdin = true"), "`amdin` of .*not permitted, got True"),
        (line(KEY) + line(KEY), "keys.toml is not TOML: Cannot overwrite"),
    ],
)
def test_a_broken_file_is_refused_with_the_reason(text: str, message: str) -> None:
    """Nothing in it is silently ignored."""
    with pytest.raises(SettingsError, match=message) as caught:
        parse_keys(text, "keys.toml")
    assert "\n" not in caught.value.message


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    """So does one that is no text."""
    with pytest.raises(SettingsError, match=r"nowhere\.toml cannot be read: .*No such file"):
        ring(tmp_path / "nowhere.toml")
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="cannot be read: 'utf-8' codec"):
        ring(path)


def test_keys_are_rotated_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Within a second: the new key counts, the old one no longer; those beside the file stay."""
    path, clock, fixed = tmp_path / "keys.toml", Clock(), secrets.token_urlsafe(32).encode()
    path.write_text(line(KEY))
    keys = ring(path, line(fixed, "ops"), clock)
    path.write_text(line(OTHER, "zeta"))
    assert keys.find(KEY).tenant == "acme"  # the last look is less than a second old
    clock.now = 1.0
    assert keys.find(OTHER) == Caller("zeta")
    assert refused(keys, KEY)
    assert keys.find(fixed) == Caller("ops")
    assert caplog.messages == ["the API keys were read again: 2 are in force"]


def test_a_file_put_in_the_old_ones_place_is_seen(tmp_path: Path) -> None:
    """Even with its size and time: as `mv`, or a mounted secret that is swapped, may do."""
    path, other, clock = tmp_path / "keys.toml", tmp_path / "other.toml", Clock()
    path.write_text(line(KEY))
    keys = ring(path, clock=clock)
    other.write_text(line(OTHER))
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    assert other.stat().st_size == path.stat().st_size
    os.replace(other, path)
    clock.now = 1.0
    assert keys.find(OTHER).tenant == "acme"


@pytest.mark.parametrize("broken", ["x = ", None])
def test_a_broken_new_file_keeps_the_old_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    """One line in the log, not one a second; a repaired file counts."""
    path, clock = tmp_path / "keys.toml", Clock()
    path.write_text(line(KEY))
    keys = ring(path, clock=clock)
    path.unlink() if broken is None else path.write_text(broken)
    for second in range(1, 4):
        clock.now = second
        assert keys.find(KEY).tenant == "acme"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.message.startswith("the old API keys stay in force: ")
    path.write_text(line(OTHER))
    clock.now = 5.0
    assert refused(keys, KEY)
    assert keys.find(OTHER).tenant == "acme"


def test_a_file_that_was_emptied_lets_nobody_in(tmp_path: Path) -> None:
    """Every key was revoked: that is not the same as having no keys."""
    path, clock = tmp_path / "keys.toml", Clock()
    path.write_text(line(KEY))
    keys = ring(path, clock=clock)
    path.write_text("")
    clock.now = 1.0
    assert refused(keys, KEY)


def test_the_file_is_looked_at_once_a_second_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request costs no system call else."""
    path, clock = tmp_path / "keys.toml", Clock()
    looks: list[Path] = []
    path.write_text(line(KEY))
    keys = ring(path, clock=clock)
    real = os.stat

    def look(where: Path) -> os.stat_result:
        looks.append(where)
        return real(where)

    monkeypatch.setattr("service.key_ring.os.stat", look)
    for request in range(100):
        clock.now = request / 40  # two and a half seconds
        keys.find(KEY)
    assert looks == [path, path]
