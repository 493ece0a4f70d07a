"""What the workers on one engine tell each other there: that nobody sends until a moment and then one tries it out, and
how many POSTs a second all of them together may send.

    {x402:<ns>}:shut      the reason, as long as nobody sends; expires by itself
    {x402:<ns>}:trouble   the reason, from then until a POST was answered: as long, one POST a second tries it out
    {x402:<ns>}:probe     taken by whoever sends that one; expires by itself
    {x402:<ns>}:bucket    tokens that are left of the rate, and the engine's time when they were counted

Each question is one script, so that no two workers take the same token. The engine's clock counts, because those of
the hosts differ.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Optional, Sequence

from x402tools._store import Allowance

# Runs a script on the engine: its text, its keys, its arguments. Raises SpoolError.
Run = Callable[[str, Sequence[str], Sequence[Any]], Any]

# Without a rate an answer that allows everything holds for so long, in seconds: a question costs as much as a tenth of
# a POST, and a worker that was not told to wait yet sends for so long more.
_FRESH = 0.05

PROBE_EVERY = 1.0  # seconds
_TROUBLE_LASTS = 60_000  # milliseconds beyond the time nobody sends: a fleet that was stopped meanwhile starts afresh
_LONGEST_REASON = 300  # characters

# The bucket holds what a tenth of a second brings: above it the rate of a single second would be passed.
_BURST = 0.1

# A script whose first write needs no memory may write on when the engine is full; so each begins with such a one.
_ALLOWANCE = """
local closed = redis.call('PTTL', KEYS[1])
if closed > 0 then
  return {0, closed, redis.call('GET', KEYS[1])}
end
local most, rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local reason = redis.call('GET', KEYS[2])
if reason then
  local taken = redis.call('PTTL', KEYS[3])
  if taken > 0 then
    return {0, taken, reason}
  end
  most = 1
end
local granted, wait = most, 0
if rate > 0 then
  redis.call('PEXPIRE', KEYS[4], 60000)
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
  local bucket = redis.call('HMGET', KEYS[4], 'tokens', 'at')
  local tokens = tonumber(bucket[1] or burst) + math.max(now - tonumber(bucket[2] or now), 0) * rate / 1000000
  tokens = math.min(tokens, burst)
  granted = math.min(most, math.floor(tokens))
  tokens = tokens - granted
  redis.call('HSET', KEYS[4], 'tokens', string.format('%.6f', tokens), 'at', string.format('%.0f', now))
  redis.call('PEXPIRE', KEYS[4], 60000)
  if tokens < 1 then
    wait = math.ceil((1 - tokens) * 1000 / rate)
  end
end
if reason and granted > 0 then
  redis.call('DEL', KEYS[3])
  redis.call('SET', KEYS[3], '1', 'PX', ARGV[4])
end
return {granted, wait, reason or ''}
"""
_SHUT = """
redis.call('DEL', KEYS[3])
local long = tonumber(ARGV[1])
if redis.call('PTTL', KEYS[1]) < long then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', long)
end
if redis.call('PTTL', KEYS[2]) < long + tonumber(ARGV[3]) then
  redis.call('SET', KEYS[2], ARGV[2], 'PX', long + tonumber(ARGV[3]))
end
return 1
"""
_REOPEN = "return redis.call('DEL', KEYS[2], KEYS[3])"


class RedisFleet:
    """The workers' own part of a namespace.

    Args:
        run: runs a script.
        namespace: of the store.
        rate: POSTs a second that all workers may send together; None for no bound. Each worker says it for itself.
        probe_every: seconds between two POSTs that try out whether the service answers again.
    """

    def __init__(
        self,
        run: Run,
        namespace: str,
        rate: Optional[float] = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        probe_every: float = PROBE_EVERY,
    ) -> None:
        self._run = run
        self._keys = [f"{{x402:{namespace}}}:{name}" for name in ("shut", "trouble", "probe", "bucket")]
        self._rate = rate or 0.0
        self._clock = clock
        self._probe_every = int(probe_every * 1000)
        self._fresh_until = 0.0

    def allowance(self, most: int) -> Allowance:
        """See `Store`."""
        if self._clock() < self._fresh_until:
            return Allowance(most)
        arguments = (most, self._rate, max(self._rate * _BURST, 1.0), self._probe_every)
        granted, wait, reason = self._run(_ALLOWANCE, self._keys, arguments)
        if not self._rate and not reason:
            self._fresh_until = self._clock() + _FRESH
        return Allowance(int(granted), int(wait) / 1000, bytes(reason).decode("utf-8", "replace") or None)

    def shut(self, reason: str, seconds: float) -> None:
        """See `Store`."""
        milliseconds = max(int(seconds * 1000), 1)
        self._run(_SHUT, self._keys, (milliseconds, reason[:_LONGEST_REASON] or "wait", _TROUBLE_LASTS))
        self._fresh_until = 0.0

    def reopen(self) -> None:
        """See `Store`."""
        self._run(_REOPEN, self._keys, ())
