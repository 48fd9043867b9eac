"""RedisTally: counters in Redis or Valkey, one server or a cluster. A decision is one script, and all its keys are in one slot.

    serving:{TENANT}/…           of a rate, what its bucket lacked and when; of open calls, lease → when it ends (sorted set);
                                 of a window, a hash: v counted, r reserved, e its end, s when it was read from the ledger,
                                 x before which no lease ends, and l LEASE: amount and end
    serving:{TENANT}/settled/…   a lease that is over

The scripts do what `policy` does, in the same whole numbers of 53 bits; the levels that they leave are judged there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from serving.errors import Refusal
from serving.gateway.admission.counters import policy
from serving.gateway.admission.counters.counter import LEASE_S, Draw, Kind, Verdict
from serving.gateway.admission.counters.policy import State
from serving.gateway.admission.counters.tally import Change, TallyUnavailable, Unseeded

#: Connections of one gateway, each with one decision at a time: at 0.2 ms each they make tens of thousands a second.
CONNECTIONS = 16
#: Seconds that keys outlive what they say, by the server's own clock.
SLACK_S = 60.0
_SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
#: A cluster's own errors are none of redis-py's others.
_FAULTS = (RedisError, RedisClusterException, OSError, TimeoutError)
_KINDS = {Kind.RATE: 0, Kind.WINDOW: 1, Kind.OPEN: 2}


class _Script:
    def __init__(self, text: str) -> None:
        self.text = _COMMON + text
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_COMMON = """
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local lease, lease_us, slack_ms = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local function written(number) return string.format('%.0f', number) end

-- Whole, and exact: all numbers are below 2^53.
local function quotient(a, b) return (a - math.fmod(a, b)) / b end

-- What refills within a period.
local function refilled(elapsed, limit, period)
  local rest = math.fmod(limit, period)
  return elapsed * ((limit - rest) / period) + quotient(elapsed * rest, period)
end

local function rate(key)
  local found = redis.call('GET', key)
  if not found then return 0, 0 end
  local value, moment = string.match(found, '^(%d+) (%d+)$')
  return tonumber(value), tonumber(moment)
end

local function lacking(value, moment, limit, period, at)
  local elapsed = math.max(0, at - moment)
  local periods = quotient(elapsed, period)
  return math.max(0, value - periods * limit - refilled(elapsed - periods * period, limit, period))
end

local function pour(key, limit, period, amount, at)
  local value, moment = rate(key)
  if lacking(value, moment, limit, period, at) == 0 then
    value, moment = math.max(0, amount), math.max(at, moment)
  else
    local periods = quotient(math.max(0, at - moment), period)
    value, moment = value - periods * limit + amount, moment + periods * period
    if lacking(value, moment, limit, period, at) == 0 then value, moment = 0, math.max(at, moment) end
  end
  if value == 0 then
    redis.call('DEL', key)
  else
    local full_ms = limit > 0 and value / limit * period / 1000 or 0
    redis.call('SET', key, written(value) .. ' ' .. written(moment), 'PX', written(full_ms + slack_ms))
  end
  return value, moment
end

-- Counted (nil: not known), reserved, its end, and when it was read. What has ended is let go of.
local function window(key, ends)
  local found = redis.call('HMGET', key, 'v', 'r', 'e', 's', 'x')
  if tonumber(found[3] or 0) < ends then
    if found[3] then redis.call('DEL', key) end
    return nil, 0, ends, 0
  end
  local reserved = tonumber(found[2] or 0)
  if tonumber(found[5] or 0) <= now then
    local fields, first = redis.call('HGETALL', key), 0
    for i = 1, #fields, 2 do
      if string.sub(fields[i], 1, 1) == 'l' then
        local amount, over = string.match(fields[i + 1], '^(%d+) (%d+)$')
        if tonumber(over) <= now then
          reserved = reserved - tonumber(amount)
          redis.call('HDEL', key, fields[i])
        elseif first == 0 or tonumber(over) < first then
          first = tonumber(over)
        end
      end
    end
    redis.call('HSET', key, 'r', written(reserved), 'x', written(first == 0 and now + lease_us or first))
  end
  return found[1] and tonumber(found[1]), reserved, tonumber(found[3]), tonumber(found[4] or 0)
end

local function hold(key, reserved, ends, amount)
  local before = redis.call('HGET', key, 'l' .. lease)
  if before then reserved = reserved - tonumber(string.match(before, '^%d+')) end
  if amount > 0 then
    redis.call('HSET', key, 'l' .. lease, written(amount) .. ' ' .. written(now + lease_us))
    redis.call('HSETNX', key, 'x', written(now + lease_us))
  elseif before then
    redis.call('HDEL', key, 'l' .. lease)
  end
  reserved = reserved + amount
  redis.call('HSET', key, 'r', written(reserved), 'e', written(ends))
  redis.call('PEXPIRE', key, written(math.max(0, ends - now) / 1000 + slack_ms))
  return reserved
end

local function opened(key)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  return redis.call('ZCARD', key)
end

local function open(key)
  redis.call('ZADD', key, written(now + lease_us), lease)
  redis.call('PEXPIRE', key, written(lease_us / 1000 + slack_ms))
end
"""

#: KEYS: a counter each; ARGV: kind, limit, amount, and period or end of each. → refused (0: none), now, then three numbers of each
#: counter's state; or -1 and the places of windows that are not known.
_RESERVE = _Script(
    """
local refused, unknown, states = 0, {-1}, {}
for i, key in ipairs(KEYS) do
  local kind, limit = tonumber(ARGV[4 * i + 1]), tonumber(ARGV[4 * i + 2])
  local amount, period = tonumber(ARGV[4 * i + 3]), tonumber(ARGV[4 * i + 4])
  local value, moment, held, fits = 0, 0, 0, false
  if kind == 0 then
    value, moment = rate(key)
    fits = limit > 0 and lacking(value, moment, limit, period, now) + amount <= limit
  elseif kind == 1 then
    value, held, moment = window(key, period)
    fits = value and limit > 0 and (moment ~= period or value + held + amount <= limit)
    if not value then unknown[#unknown + 1] = i - 1 end
  else
    held = opened(key)
    fits = held < limit
  end
  if not fits and refused == 0 then refused = i end
  states[i] = {value, moment, held}
end
if #unknown > 1 then return unknown end
local answer = {refused, now}
for i, key in ipairs(KEYS) do
  local value, moment, held = states[i][1], states[i][2], states[i][3]
  if refused == 0 then
    local kind, limit = tonumber(ARGV[4 * i + 1]), tonumber(ARGV[4 * i + 2])
    local amount, period = tonumber(ARGV[4 * i + 3]), tonumber(ARGV[4 * i + 4])
    if kind == 0 then
      value, moment = pour(key, limit, period, amount, now)
    elseif kind == 1 then
      if moment == period then held = hold(key, held, period, amount) end
    else
      open(key)
      held = held + 1
    end
  end
  answer[#answer + 1] = value
  answer[#answer + 1] = moment
  answer[#answer + 1] = held
end
return answer
"""
)

#: KEYS: what says that the lease is over, then a counter each; ARGV: is it final, when it was over, when rates were spent; then kind,
#: limit, add, hold, and period or end of each.
_APPLY = _Script(
    """
local is_final, over_at, spent_at = ARGV[5] == '1', tonumber(ARGV[6]), tonumber(ARGV[7])
if is_final then
  if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', written(lease_us / 1000 + slack_ms)) then return 0 end
elseif redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
for i = 2, #KEYS do
  local key, at = KEYS[i], 5 * i - 3
  local kind, limit, add = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local amount, period = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  if kind == 0 then
    if add ~= 0 then pour(key, limit, period, add, spent_at > 0 and spent_at or now) end
  elseif kind == 1 then
    local value, reserved, ends, seeded_at = window(key, period)
    if ends == period then
      local is_held = redis.call('HEXISTS', key, 'l' .. lease) == 1
      hold(key, reserved, period, amount)
      if value and (is_held or seeded_at < over_at) then redis.call('HSET', key, 'v', written(value + add)) end
    end
  elseif amount > 0 then
    open(key)
  else
    redis.call('ZREM', key, lease)
  end
end
return 1
"""
)

#: KEYS: a window; ARGV: its end, what the ledger says, and whether that comes late.
_SEED = _Script(
    """
local value, reserved, ends = window(KEYS[1], tonumber(ARGV[5]))
local said, is_late = tonumber(ARGV[6]), ARGV[7] == '1'
if ends == tonumber(ARGV[5]) and (not value or is_late) then
  redis.call('HSET', KEYS[1], 'v', written(math.max(said, value or 0)), 'e', written(ends), 's', written(now))
  redis.call('PEXPIRE', KEYS[1], written(math.max(0, ends - now) / 1000 + slack_ms))
end
return 1
"""
)


class RedisTally:
    """`tally = RedisTally(url_file, is_cluster=False, timeout_s=0.25)`; raises Refusal when the file holds no address.

    `timeout_s` is for opening a connection; callers bound everything else.
    """

    def __init__(
        self, url_file: Path, *, is_cluster: bool, timeout_s: float, clock_us: Callable[[], int] | None = None
    ) -> None:
        self._url_file = url_file
        self._is_cluster = is_cluster
        self._timeout_s = timeout_s
        #: None: the server's own, which is the same for all gateways.
        self._clock_us = clock_us
        self._url = _url(url_file)
        self._opened: Redis | RedisCluster | None = None
        # Where no connection is left, redis-py raises instead of waiting for one.
        self._turns = asyncio.Semaphore(CONNECTIONS)

    async def reserve(self, lease: str, draws: Sequence[Draw]) -> Verdict | Unseeded:
        arguments = [it for draw in draws for it in (_KINDS[draw.kind], draw.limit, draw.amount, _bound(draw))]
        found = await self._answer(_RESERVE, lease, [key(draw.name) for draw in draws], arguments)
        refused, now_us, *numbers = found
        if refused < 0:
            return Unseeded(tuple(draws[place] for place in found[1:]))
        states = [State(*numbers[at : at + 3]) for at in range(0, len(numbers), 3)]
        return policy.verdict(draws, states, refused - 1 if refused else None, now_us)

    async def seed(self, window: Draw, value: int, *, is_late: bool) -> None:
        await self._answer(_SEED, "", [key(window.name)], [window.ends_at_us, value, int(is_late)])

    async def apply(self, changes: Sequence[Change]) -> None:
        leases: dict[str, list[Change]] = {}
        for change in changes:
            leases.setdefault(change.lease, []).append(change)
        await _all(self._in_order(of_lease) for of_lease in leases.values())

    async def probe(self) -> None:
        try:
            url = _url(self._url_file)
        except Refusal:
            # As while it is replaced: a later probe may find one.
            raise TallyUnavailable("its file holds no address") from None
        if url != self._url:
            # A password was changed, or the server has moved.
            await self.close()
            self._url = url
        await self._asked(lambda client: client.set("serving:probe", "1", px=1000))

    async def tidy(self) -> None:
        """Keys end by themselves."""

    async def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            with contextlib.suppress(*_FAULTS):
                await opened.aclose()

    async def _in_order(self, changes: Sequence[Change]) -> None:
        for change in changes:
            parts = [
                it
                for part in change.parts
                for it in (_KINDS[part.draw.kind], part.draw.limit, part.add, part.hold, _bound(part.draw))
            ]
            tenant = change.parts[0].draw.name.partition("/")[0]
            keys = [key(f"{tenant}/settled/{change.lease}"), *(key(part.draw.name) for part in change.parts)]
            arguments = [int(change.is_final), change.over_at_us, change.spent_at_us, *parts]
            await self._answer(_APPLY, change.lease, keys, arguments)

    async def _answer(self, script: _Script, lease: str, keys: Sequence[str], arguments: Sequence[int]) -> Any:
        now_us = self._clock_us() if self._clock_us else 0
        common = (now_us, lease, round(LEASE_S * 1e6), round(SLACK_S * 1e3))
        sent = (len(keys), *keys, *common, *arguments)

        async def ask(client: Any) -> Any:
            try:
                return await client.evalsha(script.digest, *sent)
            except NoScriptError:
                return await client.eval(script.text, *sent)

        return await self._asked(ask)

    async def _asked(self, ask: Callable[[Any], Any]) -> Any:
        async with self._turns:
            if self._opened is None:
                self._opened = self._open()
            try:
                return await ask(self._opened)
            except _FAULTS as error:
                raise TallyUnavailable(_reason(error)) from error

    def _open(self) -> Redis | RedisCluster:
        scheme, rest = self._url.split("://", 1)
        url = f"{_SCHEMES[scheme]}://{rest}"
        said: dict[str, Any] = {
            # Callers have a time-out around each question; with redis-py's own, Python 3.11 loses the cancellation of a call (TEN-11).
            "socket_timeout": None,
            "socket_connect_timeout": self._timeout_s,
            # Twice as many: a cluster's client has questions of its own.
            "max_connections": 2 * CONNECTIONS,
            # A decision that may have been made is not asked for again.
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        if self._is_cluster:
            return RedisCluster.from_url(url, **said)
        return Redis.from_url(url, **said)


def key(name: str) -> str:
    """Where a counter is: one slot of a cluster has all of a tenant's."""
    tenant, _, rest = name.partition("/")
    return f"serving:{{{tenant}}}/{rest}"


def _bound(draw: Draw) -> int:
    return draw.ends_at_us if draw.kind is Kind.WINDOW else draw.period_us


async def _all(calls: Iterable[Awaitable[None]]) -> None:
    """Raises what one of them raises, once all have ended."""
    for ended in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(ended, BaseException):
            raise ended


def _reason(error: Exception) -> str:
    """What happened, without the address that redis-py's own words have."""
    if isinstance(error, ResponseError):
        # `NOAUTH`, `READONLY`, `OOM`: the protocol's word for it.
        return next(iter(str(error).split()), "ERR").strip(":")
    return "no answer in time" if isinstance(error, (TimeoutError, RedisTimeout)) else "it cannot be reached"


def _url(url_file: Path) -> str:
    try:
        url = url_file.read_text().strip()
    except OSError as error:
        raise Refusal(f"The file {url_file} cannot be read: {(error.strerror or 'unknown error').lower()}.") from None
    except UnicodeDecodeError:
        raise _no_address(url_file) from None
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES or "\n" in url:
        raise _no_address(url_file)
    try:
        found = parse_url(f"{_SCHEMES[scheme]}://{rest}")
    except ValueError:
        raise _no_address(url_file) from None
    if not found.get("host"):
        raise _no_address(url_file)
    return url


def _no_address(url_file: Path) -> Refusal:
    return Refusal(
        f"The file {url_file} must hold one line like redis://USER:PASSWORD@HOST:6379/0 or rediss://… for TLS, special characters "
        "percent-encoded; valkey:// and valkeys:// mean the same."
    )
