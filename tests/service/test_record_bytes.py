"""Every record comes back from its bytes; nothing else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from service.errors import InternalError
from service.session import LastReply, Record
from service.store.record_bytes import pack_record, unpack_record

COUNTS = st.integers(0, 2**63)
KEYS = st.just(b"") | st.binary(min_size=16, max_size=16)
LASTS = st.builds(
    LastReply, COUNTS, st.binary(max_size=16), st.binary(), st.booleans(), st.booleans(), KEYS
)
NAMES = st.text(max_size=40)
RECORDS = st.builds(Record, COUNTS, NAMES, NAMES, COUNTS, st.binary(), LASTS)
ONE = Record(1, "sine-cell", "aaaa", 2, b"state", LastReply(1, b"digest", b"y", True))
KEYED = replace(ONE, last=replace(ONE.last, key_digest=b"k" * 16))
OF_FORMAT_1 = bytes.fromhex(  # ONE, as the first Carousel wrote it
    "01 0100000000000000 0200000000000000 0100000000000000 01"
    "06 0900 0400 05000000 01000000"
    "646967657374 73696e652d63656c6c 61616161 7374617465 79"
)


@given(RECORDS)
def test_a_record_comes_back(record: Record) -> None:
    """Every field, whatever its length."""
    assert unpack_record(pack_record(record)) == record


def test_a_record_of_an_earlier_carousel_is_read() -> None:
    """An update loses no session; and without a key what is written is what that one reads."""
    assert unpack_record(OF_FORMAT_1) == ONE
    assert pack_record(ONE) == OF_FORMAT_1


def test_a_key_costs_16_bytes_and_none_costs_nothing() -> None:
    """Of the record; the rest is where it was."""
    assert len(pack_record(KEYED)) == len(pack_record(ONE)) + 16
    assert pack_record(KEYED)[1:17] == pack_record(ONE)[1:17]  # what Redis compares


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01",
        b"\x03" + pack_record(ONE)[1:],
        b"\x02" + pack_record(ONE)[1:],
        pack_record(ONE)[:-1],
        pack_record(KEYED)[:-1],
        b"\x80\x04K\x01.",
    ],
)
def test_what_is_not_a_record_is_refused(raw: bytes) -> None:
    """Empty, cut short, of another format, or a pickle."""
    with pytest.raises(InternalError, match="stored record"):
        unpack_record(raw)
