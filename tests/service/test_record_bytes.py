"""Every record comes back from its bytes; nothing else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InternalError
from service.session import LastReply, Record
from service.store.record_bytes import pack_record, unpack_record

COUNTS = st.integers(0, 2**63)
LASTS = st.builds(LastReply, COUNTS, st.binary(max_size=16), st.binary(), st.booleans())
NAMES = st.text(max_size=40)
RECORDS = st.builds(Record, COUNTS, NAMES, NAMES, COUNTS, st.binary(), LASTS)
ONE = Record(1, "sine-cell", "aaaa", 2, b"state", LastReply(1, b"digest", b"y", True))


@given(RECORDS)
def test_a_record_comes_back(record: Record) -> None:
    """Every field, whatever its length."""
    assert unpack_record(pack_record(record)) == record


@pytest.mark.parametrize(
    "raw", [b"", b"\x01", b"\x02" + pack_record(ONE)[1:], pack_record(ONE)[:-1], b"\x80\x04K\x01."]
)
def test_what_is_not_a_record_is_refused(raw: bytes) -> None:
    """Empty, cut short, of another format, or a pickle."""
    with pytest.raises(InternalError, match="stored record"):
        unpack_record(raw)
