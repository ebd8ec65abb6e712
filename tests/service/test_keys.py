"""`python -m service.keys`, as an operator types it."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.key_ring import KeyRing, read_keys

ROOT = Path(__file__).parents[2]


def keys(*arguments: str, status: int = 0, **environment: str) -> str:
    """What the command printed; of one that fails, what it complained of."""
    done = subprocess.run(
        [sys.executable, "-m", "service.keys", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert (done.stderr == "") == (status == 0)
    return done.stderr if status else done.stdout


def test_a_new_key_is_shown_once_with_its_line() -> None:
    """Whoever puts the line into a file is known by the key; no two are alike."""
    shown = [keys("new", "--tenant", "acme", "--admin").splitlines() for _ in range(2)]
    for _, key, _, line in shown:
        assert len(key) == len("carousel_") + 43
        caller = KeyRing(None, line).find(key.encode())
        assert (caller.tenant, caller.is_admin, caller.max_sessions) == ("acme", True, None)
        assert key not in line
    assert shown[0][1] != shown[1][1]


def test_a_new_key_goes_into_the_file_after_the_others(tmp_path: Path) -> None:
    """Only the key is printed, for a script; comments and the file's mode stay."""
    path = tmp_path / "keys.toml"
    path.write_text("# ours")  # no line break at its end
    path.chmod(0o640)
    one = keys("new", "--tenant", "acme", "--max-sessions", "5", "--file", str(path)).strip()
    note = 'Jane\'s "laptop" \\ \n 2'
    more = ("--days", "2", "--note", note)
    two = keys("new", "--tenant", "zeta", *more, CAROUSEL_API_KEYS_FILE=str(path)).strip()
    ring = KeyRing(path)
    assert (ring.find(one.encode()).tenant, ring.find(one.encode()).max_sessions) == ("acme", 5)
    assert ring.find(two.encode()).tenant == "zeta"
    entry = list(read_keys(path).values())[1]
    assert entry.note == note.replace("\n", " ")
    assert entry.expires_at_s is not None
    assert 0 <= 2 * 86_400 - (entry.expires_at_s - datetime.now(UTC).timestamp()) < 60
    assert path.read_text().startswith("# ours\n")
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["keys.toml"]


def test_a_file_that_did_not_exist_is_for_its_owner_alone(tmp_path: Path) -> None:
    """It holds no keys, but says who has some."""
    keys("new", "--tenant", "acme", "--file", str(tmp_path / "keys.toml"))
    assert (tmp_path / "keys.toml").stat().st_mode & 0o777 == 0o600


def test_keys_are_listed_and_revoked_by_their_first_digits(tmp_path: Path) -> None:
    """The others stay."""
    path = tmp_path / "keys.toml"
    file = ("--file", str(path))
    for tenant in ("acme", "zeta"):
        keys("new", "--tenant", tenant, "--note", f"of {tenant}", *file)
    head, acme, zeta = keys("list", *file).splitlines()
    assert head.split() == ["sha256", "tenant", "admin", "max_sessions", "expires", "note"]
    assert acme.split() == [acme[:12], "acme", "no", "-", "-", "of", "acme"]
    assert keys("revoke", acme[:12], *file) == f"revoked {acme[:12]} of acme\n"
    assert [entry.tenant for entry in read_keys(path).values()] == ["zeta"]
    assert "no key whose SHA-256 begins with" in keys("revoke", acme[:12], *file, status=1)
    assert keys("list", *file).splitlines() == [head, zeta]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("new", "--tenant", "a/b"), "keys: the arguments: `tenant` of"),
        (("new", "--tenant", "a", "--max-sessions", "0"), "`max_sessions` of"),
        (("revoke", "abc", "--file", "x"), "`abc` is not the begin of a SHA-256, expected 8 to 64"),
        (("list",), "which key file? expected --file FILE, or CAROUSEL_API_KEYS_FILE"),
        (("list", "--file", "/nowhere/k"), "the key file /nowhere/k cannot be read"),
        (("new", "--tenant", "a", "--file", "/nowhere/k"), "/nowhere/k cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    """No traceback."""
    complaint = keys(*arguments, status=1)
    assert message in complaint
    assert complaint.count("\n") == 1


def test_a_broken_file_is_left_as_it_is(tmp_path: Path) -> None:
    """A key that nobody could use would be lost."""
    path = tmp_path / "keys.toml"
    path.write_text("x = ")
    assert "is not TOML" in keys("new", "--tenant", "acme", "--file", str(path), status=1)
    assert path.read_text() == "x = "
