"""Where in the user's own code an exception was raised."""

import linecache
import sysconfig
import traceback
from pathlib import Path

_PLACES = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_NOT_THEIRS = tuple(f"{Path(place).resolve()}/" for place in [str(Path(__file__).parent), *_PLACES])


def users_line(error: BaseException) -> tuple[str, int] | None:
    """The file and line of the user's that was running; None: none of the user's was.

    What lies in this package, in the standard library or in an installed package is not theirs.
    """
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        path = str(Path(frame.filename).resolve())
        if not frame.filename.startswith("<") and not path.startswith(_NOT_THEIRS) and frame.lineno:
            return frame.filename, frame.lineno
    return None


def describe(error: BaseException) -> str:
    """`KeyError: 'k' (mynet.py:24: return x["k"])`: the type, the first line, and the place."""
    said = (str(error).strip() or "no message").splitlines()[0]
    text = f"{type(error).__name__}: {said[:160]}"
    where = users_line(error)
    if where is None:
        return text
    source = linecache.getline(*where).strip()[:60]
    return f"{text} ({Path(where[0]).name}:{where[1]}: {source})"
