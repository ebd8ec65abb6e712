"""Make, list and revoke API keys: `python -m service.keys new --tenant acme --file keys.toml`.

    new     make a key; it is shown once, and only its SHA-256 goes into the file
    list    who has keys, and what they may do
    revoke  take keys out of the file, by the first digits of their SHA-256

A running service reads the file again within a second (`service/key_ring.py` says what is in it).
Each change is a whole new file in the old one's place: no reader sees half of it.
"""

import argparse
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.errors import SettingsError
from service.key_ring import KEY_PREFIX, digest_of_key, parse_keys, read_keys

KEY_BYTES = 32  # random ones, 256 bits
MIN_PREFIX = 8  # digits of a SHA-256 to revoke by: as many as `list` shows at least
DEFAULT_FILE = os.environ.get("CAROUSEL_API_KEYS_FILE")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except SettingsError as error:
        print(f"keys: {error.message}", file=sys.stderr)
        return 1
    return 0


def new(options: argparse.Namespace) -> None:
    """Make a key, and show it once."""
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    line = f"{digest_of_key(key.encode())} = {{ {_fields(options)} }}\n"
    parse_keys(line, "the arguments")
    if options.file is None:
        print(f"the key, which is shown once:\n{key}\nits line for the key file:\n{line}", end="")
        return
    text = _text_of(options.file)
    _replace(options.file, text + ("\n" if text and not text.endswith("\n") else "") + line)
    print(key)


def show(options: argparse.Namespace) -> None:
    """A line for each key of the file."""
    print(f"{'sha256':<14}{'tenant':<20}{'admin':<7}{'max_sessions':<14}{'expires':<28}note")
    for digest, entry in read_keys(_file(options)).items():
        most = "-" if entry.max_sessions is None else str(entry.max_sessions)
        print(
            f"{digest[:12]:<14}{entry.tenant:<20}{'yes' if entry.admin else 'no':<7}{most:<14}"
            f"{entry.expires or '-'!s:<28}{entry.note or ''}"
        )


def revoke(options: argparse.Namespace) -> None:
    """Take out every line whose SHA-256 begins so."""
    path = _file(options)
    if not re.fullmatch(rf"[0-9a-f]{{{MIN_PREFIX},64}}", options.sha256):
        raise SettingsError(
            f"`{options.sha256}` is not the begin of a SHA-256, expected {MIN_PREFIX} to 64 "
            "lower-case hex digits, as `list` shows them"
        )
    before = read_keys(path)
    lines = path.read_text("utf-8").splitlines(keepends=True)
    kept = "".join(line for line in lines if not line.lstrip(' "').startswith(options.sha256))
    gone = before.keys() - parse_keys(kept, str(path)).keys()
    if not gone:
        raise SettingsError(f"{path} has no key whose SHA-256 begins with {options.sha256}")
    _replace(path, kept)
    for digest in sorted(gone):
        print(f"revoked {digest[:12]} of {before[digest].tenant}")


def _fields(options: argparse.Namespace) -> str:
    fields = [f"tenant = {_quoted(options.tenant)}"]
    if options.admin:
        fields.append("admin = true")
    if options.max_sessions is not None:
        fields.append(f"max_sessions = {options.max_sessions}")
    if options.days is not None:
        expires = datetime.now(UTC) + timedelta(days=options.days)
        fields.append(f"expires = {expires:%Y-%m-%dT%H:%M:%SZ}")
    if options.note is not None:
        fields.append(f"note = {_quoted(options.note)}")
    return ", ".join(fields)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else " " for c in escaped) + '"'


def _file(options: argparse.Namespace) -> Path:
    if options.file is None:
        raise SettingsError("which key file? expected --file FILE, or CAROUSEL_API_KEYS_FILE")
    return Path(options.file)


def _text_of(path: Path) -> str:
    """A new key file begins empty; SettingsError if there is one that is broken."""
    if not path.exists():
        return ""
    read_keys(path)
    return path.read_text("utf-8")


def _replace(path: Path, text: str) -> None:
    target = path.resolve()  # of a link, the file that it leads to
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".keys-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(name, target.stat().st_mode & 0o777)
        os.replace(name, target)
    except OSError as error:
        raise SettingsError(f"the key file {path} cannot be written: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.keys", description="Make, list and revoke API keys."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    file_help = "the key file; CAROUSEL_API_KEYS_FILE if that is set"
    one = commands.add_parser("new", help="make a key; it is shown once")
    one.add_argument("--tenant", required=True, help="whose sessions it sees: all keys of a tenant")
    one.add_argument("--admin", action="store_true", help="it may also change what is served")
    one.add_argument("--max-sessions", type=int, help="live sessions of the tenant under this key")
    one.add_argument("--days", type=float, help="it expires after so many days")
    one.add_argument("--note", help="whose it is, for `list`")
    one.set_defaults(run=new)
    every = commands.add_parser("list", help="who has keys")
    every.set_defaults(run=show)
    gone = commands.add_parser("revoke", help="take keys out of the file")
    gone.add_argument("sha256", help=f"its first digits, {MIN_PREFIX} at least, as `list` has them")
    gone.set_defaults(run=revoke)
    for command in (one, every, gone):
        command.add_argument("--file", type=Path, default=DEFAULT_FILE, help=file_help)
    return parser


if __name__ == "__main__":
    sys.exit(main())
