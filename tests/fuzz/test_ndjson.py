"""Lines of /stream that are not what they should be: each is refused by itself, and no more."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.conftest import FUZZ, VICTIM, Target

MAX_DEPTH = 9_000  # of brackets; a line of them stays under the limit of the body
OURS = {"internal"}  # codes that say that the fault is ours


def line(x: str = "[[0.5]]", more: str = "", session_id: str = VICTIM) -> bytes:
    return f'{{"session_id": "{session_id}", "x": {x}{more}}}'.encode()


numbers = st.one_of(
    st.sampled_from(["NaN", "Infinity", "-Infinity", "-0", "-0.0", "1e400", "-1e400", "5e-324"]),
    st.sampled_from(["1" * 400, "-" + "9" * 5_000, "0x10", "01", "+1", ".5", "1.", "1e", "1_0"]),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers().map(str),
    st.sampled_from(["null", "true", '"1"', "[]", "{}", "[1, 2]", "[[1]]", '"\\ud800"']),
)
rows = st.lists(st.lists(numbers, max_size=3), max_size=3).map(
    lambda found: "[" + ", ".join("[" + ", ".join(row) + "]" for row in found) + "]"
)
nested = st.builds(
    lambda depth, closed: "[" * depth + "]" * (depth if closed else 0),
    st.integers(1, MAX_DEPTH),
    st.booleans(),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
fields = st.one_of(
    st.sampled_from(
        [
            ', "session_id": "other"',  # keys that come twice
            ', "x": [[1e400]]',
            ', "step": 0, "step": 7',
            ', "step": 9223372036854775807',
            ', "step": 9223372036854775808',
            ', "step": -1',
            ', "step": 1.0',
            ', "step": "0"',
            ', "step": 1e3',
            ', "model": "\\u0000"',
            ', "model": ":"',
            ', "want": []',
            ', "want": ["y", "y"]',
            ', "choose": {"method": {}}',
            ', "__proto__": {}',
            ",",
        ]
    ),
    st.builds(
        lambda name, value: f", {json.dumps(name)}: {json.dumps(value)}",
        st.sampled_from(["step", "model", "want", "choose", "x", "session_id", "extra"]),
        anything,
    ),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good line with a piece of it gone, doubled, or other bytes in its place."""
    good = line(draw(st.sampled_from(["[[0.5]]", "[[1], [2]]"])))
    start = draw(st.integers(0, len(good)))
    end = draw(st.integers(start, min(start + 4, len(good))))
    between = draw(
        st.sampled_from([b"", b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r"])
        | st.binary(max_size=3)
    )
    return good[:start] + between + good[end:]


lines = st.one_of(
    st.just(line()),
    rows.map(line),
    nested.map(line),
    nested.map(str.encode),
    fields.map(lambda more: line("[[0.5]]", more)),
    damaged(),
    st.binary(max_size=40),
    anything.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"", b"  \t", b"\x00", b"\xef\xbb\xbf" + line(), line() + b"\r", b'"', b"{"]),
    st.integers(15_000, 45_000).map(lambda size: b" " * size + line()),
    st.integers(15_000, 45_000).map(lambda size: b"[" + b"1," * size),
).map(lambda one: one.replace(b"\n", b" "))


@FUZZ
@given(sent=st.lists(lines, min_size=1, max_size=8), whole=st.booleans())
def test_bad_lines_are_refused_one_by_one(target: Target, sent: list[bytes], whole: bool) -> None:
    """One reply a line, none of them ours to be ashamed of; the oracle replays what was run."""
    body = b"\n".join(sent)
    pieces = [body] if whole else [body[n : n + 977] for n in range(0, len(body), 977)]
    response = target.client.post("/stream", content=iter(pieces))
    assert response.status_code == 200
    assert b"Traceback" not in response.content
    replies = [json.loads(reply) for reply in response.content.splitlines()]
    numbered = {n: text for n, text in enumerate(sent, 1) if text.strip()}
    assert len(replies) == len(numbered)
    refused = [reply for reply in replies if "error" in reply]
    assert len({reply["line"] for reply in refused}) == len(refused)
    assert {reply["error"]["code"] for reply in refused}.isdisjoint(OURS)
    for reply in refused:
        del numbered[reply["line"]]
    done = [read(text) for _, text in sorted(numbered.items())]
    mine = [request for request in done if request["session_id"] == VICTIM]
    told = [reply for reply in replies if reply.get("session_id") == VICTIM and "y" in reply]
    for request, reply in zip(mine, told, strict=True):
        target.note(200, request, reply)


def read(text: bytes) -> dict[str, Any]:
    """What a line that was run said; of keys that come twice, the last."""
    found: dict[str, Any] = json.loads(text)
    return found
