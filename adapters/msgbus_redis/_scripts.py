"""The Lua scripts. Each works on as many keys as it is given: one round trip for all concurrent calls.

A record is a string: its state (``P`` in progress, ``D`` done, ``R`` done with a reply), the fingerprint, ``|``, the
length of the owner's token, ``|``, the token, and the reply. So a claim of ours is one comparison, and nobody has to
take a record apart but for the reply. Its time to live is the lease, and afterwards the time it stays done.

A completed record keeps its owner, so that a completion whose answer got lost on the way can be repeated.
"""

from __future__ import annotations

__all__ = ["CLAIM", "COMPLETE", "EXTEND", "GRANTED", "IN_PROGRESS", "MISMATCH", "RELEASE"]

GRANTED, IN_PROGRESS, MISMATCH = 0, 1, 2
"""How `CLAIM` answers; a done key is answered with 3, or with its reply."""

CLAIM = """
local answers = {}
for i, key in ipairs(KEYS) do
    local fingerprint, owner, lease = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
    local mine = 'P' .. fingerprint .. '|' .. #owner .. '|' .. owner
    local found = redis.call('GET', key)
    if not found or found == mine then
        redis.call('SET', key, mine, 'PX', lease)
        answers[i] = {0}
    elseif string.sub(found, 2, #fingerprint + 2) ~= fingerprint .. '|' then
        answers[i] = {2}
    elseif string.sub(found, 1, 1) == 'P' then
        answers[i] = {1, redis.call('PTTL', key)}
    elseif string.sub(found, 1, 1) == 'D' then
        answers[i] = {3}
    else
        local _, last, length = string.find(found, '^(%d+)|', #fingerprint + 3)
        answers[i] = {3, string.sub(found, last + tonumber(length) + 1)}
    end
end
return answers
"""

EXTEND = """
local answers = {}
for i, key in ipairs(KEYS) do
    local fingerprint, owner, lease = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
    local mine = 'P' .. fingerprint .. '|' .. #owner .. '|' .. owner
    answers[i] = 0
    if redis.call('GET', key) == mine then
        answers[i] = redis.call('PEXPIRE', key, lease)
    end
end
return answers
"""

COMPLETE = """
local answers = {}
for i, key in ipairs(KEYS) do
    local fingerprint, owner, ttl = ARGV[5 * i - 4], ARGV[5 * i - 3], ARGV[5 * i - 2]
    local state, reply = ARGV[5 * i - 1], ARGV[5 * i]
    local tail = fingerprint .. '|' .. #owner .. '|' .. owner
    local found = redis.call('GET', key)
    answers[i] = 1
    if not found or found == 'P' .. tail then
        redis.call('SET', key, state .. tail .. reply, 'PX', ttl)
    elseif string.sub(found, 1, 1) == 'P' or string.sub(found, 2, #tail + 1) ~= tail then
        answers[i] = 0
    end
end
return answers
"""

RELEASE = """
for i, key in ipairs(KEYS) do
    local fingerprint, owner = ARGV[2 * i - 1], ARGV[2 * i]
    if redis.call('GET', key) == 'P' .. fingerprint .. '|' .. #owner .. '|' .. owner then
        redis.call('DEL', key)
    end
end
"""
