"""How sessions lie in Redis, and the scripts that read and change them there.

Rules
- A session belongs to one of `BUCKETS` buckets, by the hash of its key. All that is known of a
  bucket is in four keys with one hash tag, so they share a slot, one script call changes them
  together, and a cluster moves them together:

      carousel:{TAG}:sessions   hash  member -> head, record
      carousel:{TAG}:expiry     zset  member by the time its session expires (ms)
      carousel:{TAG}:counts     hash  tenant -> how many members; expired ones count until swept
      carousel:{TAG}:expired    list  members whose session expired and began again, not yet told

- member: length of the tenant u16, tenant, session id. head: token of the commit (8 bytes), when
  the session expires (u64, ms). The record follows, as `pack_record` wrote it: its bytes 1 to 16
  are birth and step, and tell it from another. All numbers little-endian.
- The layout is the same on one server and on a cluster: `redis-cli --cluster import` moves the
  sessions of one into the other, while no service runs (it moves one key after another). The tags
  are chosen so that the buckets' slots lie evenly over all 16,384, and so over a cluster's nodes.
- The time is the server's, read in the script. What has expired is dead for every script, swept
  or not.
- A script takes any number of buckets: of each the first `keys` of its keys, and as arguments its
  common ones, then for each bucket how many follow, and these. It answers one array a bucket.
"""

import binascii
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from service.session import Record, SessionKey
from service.store.record_bytes import pack_record, unpack_record

# A batch of 64 on a cluster is one call for each of its buckets; more buckets are more calls.
# Fewer are larger, and a cluster that moves one to another node stands still for it: of a million
# sessions of 2 KiB one bucket holds 16 MiB.
BUCKETS = 128
SLOTS = 16_384
EXPIRED_A_SWEEP = 32  # of each bucket: 4,096 in all keep the server for some 20 ms
# How far a tenant is looked for among what has expired, or will next, in each bucket.
SCAN = 100

HEAD = struct.Struct("<8sQ")
IDENTITY = struct.Struct("<QQ")
_TENANT = struct.Struct("<H")


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where some of the sessions are."""

    slot: int
    keys: tuple[bytes, bytes, bytes, bytes]


def _make_buckets() -> tuple[Bucket, ...]:
    """The first tag, counted from 0, in each of `BUCKETS` equal ranges of slots."""
    found: dict[int, Bucket] = {}
    number = 0
    while len(found) < BUCKETS:
        tag = str(number)
        slot = binascii.crc_hqx(tag.encode(), 0) % SLOTS
        names = ("sessions", "expiry", "counts", "expired")
        one, two, three, four = (f"carousel:{{{tag}}}:{name}".encode() for name in names)
        found.setdefault(slot * BUCKETS // SLOTS, Bucket(slot, (one, two, three, four)))
        number += 1
    return tuple(found[place] for place in range(BUCKETS))


ALL_BUCKETS = _make_buckets()


def bucket_of(member: bytes) -> int:
    """Its place in `ALL_BUCKETS`; the same in every process and version."""
    return binascii.crc32(member) % BUCKETS


def member_of(key: SessionKey) -> bytes:
    tenant = key.tenant.encode()
    return _TENANT.pack(len(tenant)) + tenant + key.session_id.encode()


def key_of(member: bytes) -> SessionKey:
    (length,) = _TENANT.unpack_from(member)
    at = _TENANT.size + length
    return SessionKey(member[_TENANT.size : at].decode(), member[at:].decode())


def identity_of(record: Record | None) -> bytes:
    """What a script compares: empty where there is no session."""
    return b"" if record is None else IDENTITY.pack(record.birth, record.step)


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, known to the server by its digest."""

    source: str
    sha: str
    keys: int  # how many of each bucket's


def _script(keys: int, common: int, body: str) -> Script:
    """`body` runs for each bucket, with its keys and arguments, and fills `reply`."""
    source = f"""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function is_live(held) return held and struct.unpack('<I8', held, 9) > now end
local function tenant_of(member)
  return string.sub(member, 3, 2 + struct.unpack('<I2', member))
end
local function forget(sessions, expiry, counts, member)
  redis.call('HDEL', sessions, member)
  redis.call('ZREM', expiry, member)
  local tenant = tenant_of(member)
  if redis.call('HINCRBY', counts, tenant, -1) <= 0 then redis.call('HDEL', counts, tenant) end
end
local replies = {{}}
local at = {common} + 1
for bucket = 1, #KEYS / {keys} do
  local first = {keys} * (bucket - 1)
  local sessions, expiry = KEYS[first + 1], KEYS[first + 2]
  local counts, expired = KEYS[first + 3], KEYS[first + 4]
  local last = at + ARGV[at]
  at = at + 1
  local reply = {{}}
  {body.strip()}
  replies[bucket] = reply
end
return replies
"""
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return Script(source, sha, keys)


# For each bucket its members; replies their records, nil where there is no live session.
READ = _script(
    1,
    0,
    f"""
  while at <= last do
    local held = redis.call('HGET', sessions, ARGV[at])
    reply[#reply + 1] = is_live(held) and string.sub(held, {HEAD.size + 1}) or false
    at = at + 1
  end""",
)

# Common: the time to live (ms), the commit's token, and `1` if it was sent before and its reply
# never came. For each bucket, four for each commit: member, identity before, record after (empty:
# forget), and `F` or `T` if there is no room for a new session. Replies a letter each: D done,
# L lost, F full, T its tenant is full, U unknown: it was sent before, the store holds another
# record now, and whether that one came before or after it cannot be told.
COMMIT = _script(
    4,
    3,
    f"""
  while at <= last do
    local member, before, after, room = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    local again = ARGV[3] == '1'
    local held = redis.call('HGET', sessions, member)
    local live = is_live(held)
    local identity = live and string.sub(held, {HEAD.size + 2}, {HEAD.size + 17}) or ''
    local outcome = 'D'
    if again and (live and string.sub(held, 1, 8) == ARGV[2] or not live and after == '') then
      outcome = 'D'
    elseif identity ~= before then
      outcome = again and 'U' or 'L'
    elseif after == '' then
      if live then forget(sessions, expiry, counts, member) end
    elseif not live and room ~= '' then
      outcome = room
    else
      if not held then
        redis.call('HINCRBY', counts, tenant_of(member), 1)
      elseif not live then
        redis.call('RPUSH', expired, member)
      end
      local expires = now + ARGV[1]
      redis.call('HSET', sessions, member, ARGV[2] .. struct.pack('<I8', expires) .. after)
      redis.call('ZADD', expiry, expires, member)
    end
    reply[#reply + 1] = outcome
    at = at + 4
  end""",
)

# Common: how many at most, of each bucket. Replies the members whose session expired.
SWEEP = _script(
    4,
    1,
    """
  at = last + 1
  local most = tonumber(ARGV[1])
  reply = redis.call('LPOP', expired, most) or {}
  local due = redis.call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, most - #reply)
  for _, member in ipairs(due) do
    forget(sessions, expiry, counts, member)
    reply[#reply + 1] = member
  end""",
)

# For each bucket the tenants; replies the live sessions of all, then of each tenant.
COUNT = _script(
    3,
    0,
    f"""
  reply[1] = redis.call('ZCOUNT', expiry, '(' .. now, '+inf')
  if at <= last then
    local dead = {{}}
    local due = redis.call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, {SCAN})
    for _, member in ipairs(due) do
      local tenant = tenant_of(member)
      dead[tenant] = (dead[tenant] or 0) + 1
    end
    while at <= last do
      local count = tonumber(redis.call('HGET', counts, ARGV[at]) or 0)
      reply[#reply + 1] = count - (dead[ARGV[at]] or 0)
      at = at + 1
    end
  end""",
)

# For each bucket a tenant, or nothing for all. Replies in how many ms its first live session
# expires, at the earliest; empty: there is none.
ROOM = _script(
    3,
    0,
    f"""
  local whose = at <= last and ARGV[at]
  at = last + 1
  if not whose or redis.call('HEXISTS', counts, whose) == 1 then
    local most = whose and {SCAN} or 1
    local next = redis.call(
      'ZRANGEBYSCORE', expiry, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
    for i = 1, #next, 2 do
      if not whose or tenant_of(next[i]) == whose or i == 2 * most - 1 then
        reply[1] = next[i + 1] - now
        break
      end
    end
  end""",
)


def write_after(record: Record | None) -> bytes:
    return b"" if record is None else pack_record(record)


def read_record(raw: bytes | None) -> Record | None:
    return None if raw is None else unpack_record(raw)


@dataclass(frozen=True, slots=True)
class Part:
    """What a call says of one bucket."""

    bucket: Bucket
    arguments: Sequence[bytes]
