"""Was the promise kept? Says so from what was written down in a round, and from nothing else.

An event is known by its *mark*, which the recorder drew and which travels in its metadata or in its key. It was

    intended      the recorder was about to call record_usage
    acknowledged  record_usage has returned; or refused: it has raised
    booked        the service took it, whatever the client was told
    pending, dead in the spool, as it was found when nobody had it open

Each rule is a function from the case to the sentences that say how it was broken.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from tests.conservation.logs import Line, digest, mark_of

_MS = 1_000_000  # nanoseconds
_SECOND = 1000 * _MS

# What `durability="interval"` may lose by a kill, and how long an acknowledgement of the service may wait until it is
# written down, on a machine that gives the process the time it asks for; what the machine itself took (`stall`) is
# measured by the round and added.
INTERVAL_LOSS = 20 * _MS
SETTLE_WITHIN = 50 * _MS

# So much more may pass before it is a fault rather than late. A process whose threads compete for one interpreter lock
# on a machine that has no processor to spare keeps no bound of milliseconds every time; how often is for the campaign
# to judge, over all its rounds.
OVERLOADED = 500 * _MS

# A client that left within this time of an answer had probably given up before it came.
_LEFT_BEFORE_THE_ANSWER = 50 * _MS

# `close(timeout)` may take so much longer than its timeout, stalls aside.
CLOSE_SLACK = 500 * _MS

# The parts of the library's ledger.
LEDGER = ("recorded", "delivered", "pending", "dead", "dropped")

# Of many sentences about one rule so many are printed.
_MOST_SENTENCES = 5


@dataclass
class Evidence:
    """What a round wrote down; see `logs`."""

    durability: str
    options: Dict[str, Any]
    honours_keys: bool
    intents: List[Line]
    acks: List[Line]
    life: List[Line]
    server: List[Line]
    round: List[Line]
    noise: Dict[str, str] = field(default_factory=dict)  # what processes wrote to standard error


class Verdict(NamedTuple):
    """What was broken, by rule, what was counted, and what came later than it should but was kept."""

    broken: Dict[str, List[str]]
    figures: Dict[str, int]
    late: List[str]

    def __bool__(self) -> bool:
        return not self.broken

    def sentences(self) -> List[str]:
        found = []
        for rule, sentences in self.broken.items():
            found += [f"{rule}: {sentence}" for sentence in sentences[:_MOST_SENTENCES]]
            if len(sentences) > _MOST_SENTENCES:
                found.append(f"{rule}: and {len(sentences) - _MOST_SENTENCES} more")
        return found


@dataclass
class Attempt:
    """One request as the service saw it; times in nanoseconds, None for what did not happen."""

    name: str
    key: str
    process: str
    body: str
    arrived: int
    booked: Optional[int] = None
    answered: Optional[int] = None
    status: int = 0
    is_whole: bool = True  # the answer
    refusal: int = 0  # a status that it was about to be answered with
    gone: Optional[int] = None

    @property
    def surely_answered(self) -> bool:
        """The service said all of it, that it had booked, and the client did not look as if it had left before."""
        if self.answered is None or not self.is_whole or not 200 <= self.status < 300:
            return False
        return self.gone is None or self.gone - self.answered > _LEFT_BEFORE_THE_ANSWER

    def ended(self) -> float:
        """When the client can no longer have been waiting for it."""
        return min(at for at in (self.answered, self.gone, float("inf")) if at is not None)


class End(NamedTuple):
    """How a process ended.

    Attributes:
        at: the moment of the signal, or when the process began to leave.
        last: the same, or when `close` or the end by `atexit` had returned, for a process that got so far.
        stored: it got so far, so that nothing may be missing.
        stall: how long the machine kept processes waiting around that time.
    """

    at: int
    last: int
    stored: bool
    stall: int


class Spool(NamedTuple):
    """What was found in the spool: the POSTs by their mark, and the ledger of the library."""

    when: str
    at: int
    pending: Dict[str, Line]
    dead: Dict[str, Line]
    posts: List[Line]
    ledger: Dict[str, List[int]]


class Case:
    """The evidence in the order in which the rules ask for it.

    Args:
        slack: nanoseconds that are forgiven beyond the bounds of milliseconds.
    """

    def __init__(self, evidence: Evidence, slack: int = 0) -> None:
        self.evidence = evidence
        self.slack = slack
        self.intents: Dict[str, Line] = {line["mark"]: line for line in evidence.intents}
        self.acks: Dict[str, Line] = {line["mark"]: line for line in evidence.acks if "refused" not in line}
        self.refused: Set[str] = {line["mark"] for line in evidence.acks if "refused" in line}
        outages = [line["at"] for line in evidence.round if line["what"] == "outage" and line["how"] == "kill"]
        self.attempts = _attempts(evidence.server, outages)
        self.by_key: Dict[str, List[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            self.by_key[attempt.key].append(attempt)
        self.first_booked: Dict[str, int] = {}  # by mark
        self.key_of: Dict[str, Set[str]] = defaultdict(set)  # the keys under which a mark was sent
        for attempt in self.attempts:
            mark = _mark(attempt)
            self.key_of[mark].add(attempt.key)
            if attempt.booked is not None:
                self.first_booked.setdefault(mark, attempt.booked)
        self.ends = ends(evidence)
        self.spools = [_spool(line) for line in evidence.round if line["what"] == "spool"]

    def present(self, spool: Spool) -> Set[str]:
        """The marks of all events that were booked by then, or are in the spool."""
        booked = {mark for mark, at in self.first_booked.items() if at <= spool.at}
        return booked | set(spool.pending) | set(spool.dead)

    def may_be_lost(self, ack: Line) -> bool:
        end = self.ends.get(ack["process"])
        if self.evidence.durability != "interval" or end is None or end.stored:
            return False
        return bool(ack["at"] >= end.at - INTERVAL_LOSS - end.stall - self.slack)

    def age_at_end(self, ack: Line) -> str:
        end = self.ends.get(ack["process"])
        if end is None:
            return "its process never ended"
        how = "closed its buffer" if end.stored else "ended"
        return f"{(end.at - ack['at']) / _MS:.1f} ms before its process {how} (stall {end.stall / _MS:.0f} ms)"


def judge(evidence: Evidence) -> Verdict:
    """Applies every rule."""
    case = Case(evidence, slack=OVERLOADED)
    broken = {}
    for name, rule in RULES.items():
        sentences = list(rule(case))
        if sentences:
            broken[name] = sentences
    exact = Case(evidence)
    late = [
        sentence
        for rule in (nothing_is_lost, repeats_have_a_reason, flush_is_honest, close_is_prompt)
        for sentence in rule(exact)
    ]
    return Verdict(broken, _figures(case), late if not broken else [])


# -- the rules ---------------------------------------------------------------------------------------------------


def nothing_hangs(case: Case) -> Iterator[str]:
    """Everything that was waited for came in time."""
    for line in case.evidence.round:
        if line["what"] == "hang":
            yield line["name"]


def ends_as_planned(case: Case) -> Iterator[str]:
    """No process died of something that was not planned, and none printed a traceback."""
    for line in case.evidence.round:
        if line["what"] == "ended" and line["code"] not in line["planned"]:
            yield f"{line['process']} ended with {line['code']}, planned was {line['planned']}"
    for process, text in case.evidence.noise.items():
        planned = text.count("PlannedFailure")
        if text.count("Traceback") > planned or "Fatal Python error" in text or "unexpectedly" in text:
            yield f"{process} printed: {text[-2000:]}"


def nothing_is_lost(case: Case) -> Iterator[str]:
    """What was acknowledged is booked, pending or dead, except what the durability allows to be lost."""
    for spool in case.spools:
        present = case.present(spool)
        for mark, ack in case.acks.items():
            if mark not in present and not case.may_be_lost(ack):
                yield f"{mark} ({ack['amount']} units) is gone {spool.when}; acknowledged {case.age_at_end(ack)}"


def nothing_is_invented(case: Case) -> Iterator[str]:
    """What was sent or is stored was recorded, with that content; what was refused is nowhere."""
    found = [(_mark(attempt), attempt.key, json.loads(attempt.body)) for attempt in case.attempts]
    for spool in case.spools:
        found += [(mark_of(post["key"], post["metadata"]) or "?", post["key"], post) for post in spool.posts]
    for mark, key, post in found:
        intent = case.intents.get(mark)
        if intent is None:
            yield f"nobody recorded {mark} ({key})"
        elif mark in case.refused:
            yield f"{mark} is there although record_usage raised"
        else:
            envelope = post.get("envelopeId", post.get("envelope"))
            content = (envelope, post["amount"], digest(post.get("metadata")))
            if content != (intent["envelope"], intent["amount"], intent["digest"]):
                yield f"{mark} was recorded as {intent} and is now {content}"


def one_key_for_one_event(case: Case) -> Iterator[str]:
    """An event is sent under one key, the id that record_usage gave out, and no two events share one."""
    owners: Dict[str, str] = {}
    for mark, keys in case.key_of.items():
        if len(keys) > 1:
            yield f"{mark} was sent under {len(keys)} keys"
        if mark in case.acks and keys != {case.acks[mark]["id"]}:
            yield f"{mark} has the id {case.acks[mark]['id']} and was sent under {sorted(keys)}"
        for key in keys:
            if owners.setdefault(key, mark) != mark:
                yield f"{mark} and {owners[key]} share the key {key}"


def one_body_for_one_key(case: Case) -> Iterator[str]:
    """Every attempt under a key has the same body, byte for byte."""
    for key, attempts in case.by_key.items():
        if len({attempt.body for attempt in attempts}) > 1:
            yield f"{key} was sent with different bodies: {sorted({attempt.body for attempt in attempts})}"


def units_add_up(case: Case) -> Iterator[str]:
    """The units that the service booked are those that were recorded and are not waiting."""
    if not case.spools:
        return
    last = case.spools[-1]
    present = case.present(last)
    not_booked = [mark for mark in {**last.pending, **last.dead} if mark not in case.first_booked]
    recorded = sum(case.intents[mark]["amount"] for mark in present if mark in case.intents)
    waiting = sum({**last.pending, **last.dead}[mark]["amount"] for mark in not_booked)
    units = sum(line["units"] for line in case.evidence.server if line["what"] == "booked")
    twice = 0
    if not case.evidence.honours_keys:
        twice = sum(_repeats(attempts) * _amount(attempts[0]) for attempts in case.by_key.values())
    if units - twice + waiting != recorded:
        yield f"recorded {recorded}, booked {units} ({twice} of them repeats), waiting {waiting}"


def repeats_have_a_reason(case: Case) -> Iterator[str]:
    """A booked event is sent again only if its answer was lost, or its process ended before it could write it down."""
    for before, after in _answered_and_sent_again(case):
        end = case.ends.get(before.process)
        key, first, second = before.key, before.process, after.process
        if end is None or first == second:
            yield f"{key} was sent again by {second} though {first} had the answer to {before.name}"
        elif (before.answered or 0) < end.last - SETTLE_WITHIN - end.stall - case.slack:
            age = (end.last - (before.answered or 0)) / _MS
            stall = end.stall / _MS
            yield f"{key} was sent again by {second}, answered {age:.0f} ms before {first} ended (stall {stall:.0f} ms)"


def few_in_flight(case: Case) -> Iterator[str]:
    """No process has more POSTs under way when it ends than `max_concurrency`."""
    most = case.evidence.options["max_concurrency"]
    for process, end in case.ends.items():
        under_way = sum(
            attempt.process == process and attempt.arrived <= end.last < attempt.ended() for attempt in case.attempts
        )
        if under_way > most:
            yield f"{process} had {under_way} POSTs under way when it ended, at most {most} are allowed"


def one_sender_at_a_time(case: Case) -> Iterator[str]:
    """Two processes never have the same event under way at the same time."""
    for key, attempts in case.by_key.items():
        for before, after in zip(attempts, attempts[1:]):
            if before.process == after.process:
                continue
            end = case.ends.get(before.process)
            until = min(before.ended(), end.last if end is not None else float("inf"))
            if after.arrived < until:
                yield f"{key} was sent by {after.process} while {before.process} was still sending it"


def the_ledger_agrees(case: Case) -> Iterator[str]:
    """The library's own ledger says what the service and the spool say, in events and in units."""
    for spool in case.spools:
        ledger = spool.ledger
        for column, what in ((0, "events"), (1, "units")):
            if ledger["recorded"][column] != sum(ledger[part][column] for part in LEDGER[1:]):
                yield f"{what} do not add up {spool.when}: {ledger}"
        if ledger["dropped"] != [0, 0]:
            yield f"dropped is {ledger['dropped']} {spool.when}, though there was room for everything"
        if len(spool.posts) != len(spool.pending) + len(spool.dead):
            yield f"some of the {len(spool.posts)} POSTs in the spool {spool.when} are there twice"
        present = case.present(spool)
        gone = present - set(spool.pending) - set(spool.dead)
        expected = {"pending": set(spool.pending), "dead": set(spool.dead), "delivered": gone, "recorded": present}
        for name, marks in expected.items():
            tally = [len(marks), sum(case.intents[mark]["amount"] for mark in marks if mark in case.intents)]
            if ledger[name] != tally:
                yield f"{name} is {ledger[name]} {spool.when}, the logs say {tally}"


def the_drain_is_complete(case: Case) -> Iterator[str]:
    """With a healthy service a last process delivers everything, and `stats()` says then what is in the file."""
    if not case.spools:
        yield "nobody looked into the spool"
        return
    last = case.spools[-1]
    if last.pending:
        yield f"{len(last.pending)} events are still pending {last.when}"
    drained = [line["ledger"] for line in case.evidence.life if line["what"] == "drained"]
    if drained != [last.ledger]:
        yield f"stats() said {drained}, the spool {last.when} says {last.ledger}"


def the_dead_have_a_reason(case: Case) -> Iterator[str]:
    """A dead letter says why, and the service did answer so."""
    for spool in case.spools:
        for mark, letter in spool.dead.items():
            attempts = case.by_key[letter["key"]]
            status = letter["status"]
            said_so = any((status or 0) in (attempt.status, attempt.refusal) for attempt in attempts)
            if not letter["reason"] or not said_so:
                yield f"{mark} is dead for {letter['reason']!r} ({status}), which the service never said"
            strikes = sum(attempt.status >= 500 for attempt in attempts)
            if status is not None and status >= 500 and strikes < case.evidence.options["max_attempts"]:
                yield f"{mark} is dead after {strikes} strikes"


def flush_is_honest(case: Case) -> Iterator[str]:
    """When `flush` says that nothing is pending, what its process had recorded before is booked or dead."""
    flushes = [line for line in case.evidence.life if line["what"] == "flushed"]
    for line in flushes:
        took = line["at"] - line["began"]
        if took > line["seconds"] * _SECOND + CLOSE_SLACK + _stall(case, line["process"]) + case.slack:
            yield f"flush({line['seconds']}) of {line['process']} took {took / _SECOND:.2f} s"
    dead = {mark for spool in case.spools for mark in spool.dead}
    for line in (line for line in flushes if line["done"]):
        for mark, ack in case.acks.items():
            if ack["process"] != line["process"] or ack["at"] > line["began"]:
                continue
            booked = case.first_booked.get(mark, line["at"] + 1) <= line["at"]
            if not booked and mark not in dead:
                yield f"{line['process']} flushed, but {mark} was not sent by then"


def close_is_prompt(case: Case) -> Iterator[str]:
    """`close`, and the end of the process, take no longer than `exit_timeout` and half a second."""
    leaving: Dict[str, Line] = {}
    most = case.evidence.options["exit_timeout"] * _SECOND + CLOSE_SLACK
    for line in case.evidence.life:
        if line["what"] == "leaving":
            leaving[line["process"]] = line  # a signal handler may begin anew
        elif line["what"] == "closed" and line["process"] in leaving:
            began = leaving.pop(line["process"])
            took = line["at"] - began["at"]
            if took > most + _stall(case, line["process"]) + case.slack:
                yield f"{line['process']} took {took / _SECOND:.2f} s to end ({began['how']})"


RULES: Dict[str, Callable[[Case], Iterator[str]]] = {
    rule.__name__.replace("_", " "): rule
    for rule in (
        nothing_hangs,
        ends_as_planned,
        nothing_is_lost,
        nothing_is_invented,
        one_key_for_one_event,
        one_body_for_one_key,
        units_add_up,
        repeats_have_a_reason,
        few_in_flight,
        one_sender_at_a_time,
        the_ledger_agrees,
        the_drain_is_complete,
        the_dead_have_a_reason,
        flush_is_honest,
        close_is_prompt,
    )
}


# -- reading the lines -------------------------------------------------------------------------------------------


def _attempts(lines: List[Line], outages: List[int]) -> List[Attempt]:
    """In the order of arrival. What a killed service had not answered ended with it: it could not say so."""
    found: Dict[str, Attempt] = {}
    for line in lines:
        what = line["what"]
        if what == "arrived":
            found[line["attempt"]] = Attempt(line["attempt"], line["key"], line["process"], line["body"], line["at"])
        elif what == "booked":
            found[line["attempt"]].booked = line["at"]
        elif what == "refusing":
            found[line["attempt"]].refusal = line["status"]
        elif what == "answered":
            attempt = found[line["attempt"]]
            attempt.answered, attempt.status, attempt.is_whole = line["at"], line["status"], line.get("whole", True)
        elif what == "gone":
            found[line["attempt"]].gone = line["at"]
    for attempt in found.values():
        if attempt.answered is None and attempt.gone is None:
            attempt.gone = min((at for at in outages if at >= attempt.arrived), default=None)
    return list(found.values())


def _mark(attempt: Attempt) -> str:
    return mark_of(attempt.key, json.loads(attempt.body).get("metadata")) or "?"


def ends(evidence: Evidence) -> Dict[str, End]:
    """The end of each process that did end: the signal, if there was one, rather than what it did by itself."""
    left = {line["process"]: line["at"] for line in reversed(evidence.life) if line["what"] == "leaving"}
    closed = {line["process"]: line["at"] for line in evidence.life if line["what"] == "closed"}
    # Who ended by itself was killed in vain: until somebody asks for its code, the system takes the signal. (After a
    # SIGTERM that it handles a process ends by itself too, and that moment counts.)
    by_itself = {line["process"] for line in evidence.round if line["what"] == "ended" and line["code"] >= 0}
    killed = {
        line["process"]: line["at"]
        for line in evidence.round
        if line["what"] == "killed" and not (line["signal"] == "SIGKILL" and line["process"] in by_itself)
    }
    stalls = {line["process"]: line["nanoseconds"] for line in evidence.round if line["what"] == "stall"}
    found = {}
    for process in {**left, **killed}:
        moments = [at for at in (left.get(process), killed.get(process)) if at is not None]
        at = min(moments) if process in closed else killed.get(process, moments[0])
        found[process] = End(at, closed.get(process, at), process in closed, stalls.get(process, 0))
    return found


def _spool(line: Line) -> Spool:
    posts = line["pending"] + line["dead"]
    by_mark = [{(mark_of(post["key"], post["metadata"]) or "?"): post for post in line[kind]} for kind in _KINDS]
    return Spool(line["when"], line["at"], by_mark[0], by_mark[1], posts, line["ledger"])


_KINDS = ("pending", "dead")


def _stall(case: Case, process: str) -> int:
    end = case.ends.get(process)
    return end.stall if end is not None else 0


def _answered_and_sent_again(case: Case) -> Iterator[Tuple[Attempt, Attempt]]:
    for attempts in case.by_key.values():
        for before, after in zip(attempts, attempts[1:]):
            if before.booked is not None and before.surely_answered:
                yield before, after


def _repeats(attempts: List[Attempt]) -> int:
    return max(sum(attempt.booked is not None for attempt in attempts) - 1, 0)


def _amount(attempt: Attempt) -> int:
    return int(json.loads(attempt.body)["amount"])


def _figures(case: Case) -> Dict[str, int]:
    last = case.spools[-1] if case.spools else None
    present = case.present(last) if last is not None else set(case.first_booked)
    lost = [ack for mark, ack in case.acks.items() if mark not in present]
    ages = [case.ends[ack["process"]].at - ack["at"] for ack in lost if ack["process"] in case.ends]
    signals = Counter(line["signal"] for line in case.evidence.round if line["what"] == "killed")
    repeated = [before for before, _ in _answered_and_sent_again(case) if before.process in case.ends]
    repeat_ages = [case.ends[before.process].last - (before.answered or 0) for before in repeated]
    calls = [ack["at"] - case.intents[mark]["at"] for mark, ack in case.acks.items() if mark in case.intents]
    return {
        "acknowledged": len(case.acks),
        "delivered": len(case.first_booked),
        "dead": len(last.dead) if last is not None else 0,
        "lost": len(lost),
        "oldest lost µs": max(ages, default=0) // 1000,
        "attempts": len(case.attempts),
        "repeats": sum(_repeats(attempts) for attempts in case.by_key.values()),
        "repeats of what was answered": len(repeated),
        "oldest of them µs": max(repeat_ages, default=0) // 1000,
        "kills": signals["SIGKILL"],
        "terms": signals["SIGTERM"],
        "processes": len({line["process"] for line in case.evidence.life}),
        "slowest record µs": max(calls, default=0) // 1000,
        "largest stall µs": max((end.stall for end in case.ends.values()), default=0) // 1000,
    }
