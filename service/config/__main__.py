"""`python -m service.config`: which settings are in force here, and where each comes from.

It reads what a service started in this shell would read, and refuses what that would refuse, with
the same line and status 2. What only a service can find out (are there models? is the host one
that keys must guard?) it does not ask. `--markdown` prints README's table, of the defaults.
"""

import argparse
import ast
import inspect
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise

import orjson

from service.config import PREFIX, SECRETS, Config, load_config
from service.errors import SettingsError
from service.redis_url import without_password

MIN_MEANING_CHARS = 24  # a narrower column is no longer read
MAX_VALUE_CHARS = 40
GAP = "  "


@dataclass(frozen=True)
class Setting:
    """One of them, as it is shown; a secret's value is only said to be there."""

    name: str
    value: str  # as an environment variable would have it; "" if there is none
    source: str  # `default`, or the environment variable
    default: str
    meaning: str


def settings(config: Config) -> Iterator[Setting]:
    """All of them, in the order of `Config`."""
    names = {name.upper(): name for name, value in os.environ.items() if value}
    meanings = _meanings()
    for field, info in Config.model_fields.items():
        name = PREFIX + field.upper()
        found = names.get(name) if field in config.model_fields_set else None
        yield Setting(
            name,
            value=_shown(field, getattr(config, field)),
            source="default" if found is None else f"environment: {found}",
            default=_shown(field, info.default),
            meaning=meanings[field],
        )


def _meanings() -> dict[str, str]:
    """Field -> the text below it in `Config`. Read here, as no server needs it: pydantic's own
    reading of it (`use_attribute_docstrings`) takes 70 ms of the start of each process."""
    (config,) = ast.parse(inspect.getsource(Config)).body
    assert isinstance(config, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in pairwise(config.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(meaning))):
                found[name] = " ".join(meaning.split())
    return found


def _shown(field: str, value: object) -> str:
    if value is None or value == ():
        return ""
    if field in SECRETS:
        return f"(hidden, {len(value)})" if isinstance(value, tuple) else "(hidden)"
    if field == "redis_url":
        return without_password(str(value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_table(found: Iterable[Setting], width: int) -> str:
    """For people: `width` characters wide where the values allow it."""
    head = ("setting", "value", "from", "meaning")
    rows = [head] + [
        (one.name, one.value or "none", one.source.partition(":")[0], one.meaning) for one in found
    ]
    names, values, sources = (max(len(row[column]) for row in rows) for column in range(3))
    values = min(values, MAX_VALUE_CHARS)
    left = names + values + sources + 3 * len(GAP)
    lines = []
    for row in rows:
        meanings = textwrap.wrap(row[3], max(width - left, MIN_MEANING_CHARS)) or [""]
        lines.append(
            GAP.join(
                [row[0].ljust(names), row[1].ljust(values), row[2].ljust(sources), meanings[0]]
            )
        )
        lines += [" " * left + more for more in meanings[1:]]
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(found: Iterable[Setting]) -> str:
    """README's table: the defaults."""
    rows = [
        f"| `{one.name}` | {f'`{one.default}`' if one.default else 'none'} | {_code(one.meaning)} |"
        for one in found
    ]
    return "\n".join(["| variable | default | meaning |", "| --- | --- | --- |", *rows])


def _code(meaning: str) -> str:
    """Names of settings as code."""
    return re.sub(rf"{PREFIX}\w+", r"`\g<0>`", meaning)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m service.config", description="Print the settings that are in force here."
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for scripts")
    form.add_argument("--markdown", action="store_true", help="README's table, of the defaults")
    asked = parser.parse_args(arguments)
    try:
        found = list(settings(load_config()))
    except SettingsError as error:
        print(f"carousel: {error.message}", file=sys.stderr)
        return 2
    if asked.json:
        print(orjson.dumps([asdict(one) for one in found], option=orjson.OPT_INDENT_2).decode())
    elif asked.markdown:
        print(as_markdown(found))
    else:
        print(as_table(found, shutil.get_terminal_size().columns))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    sys.exit(main())
