"""The judge is worth as much as what it notices: for each rule evidence that was tampered with makes it fail."""

from __future__ import annotations

import json
import pathlib
from typing import Any, Callable, Dict, List, Optional

import pytest

from tests.conservation import logs
from tests.conservation.campaign import Outcome, too_late
from tests.conservation.judge import RULES, Evidence, Verdict, judge

MS = 1_000_000
KILLED_AT = 1000 * MS
CONCURRENCY = 2


def evidence(durability: str = "interval") -> Evidence:
    """A round in which all is well: "a" was killed, "b" took over and closed, "z" drained.

    a/1 was delivered by "a"; the answer to a/2 was lost in the kill, so "b" sent it again; b/1 is a dead letter; a/3
    was recorded 5 ms before the kill and is not stored; b/2 was refused because the buffer was closed.
    """
    options = {"max_concurrency": CONCURRENCY, "exit_timeout": 0.5, "max_attempts": 3}
    made = Evidence(durability, options, True, intents=[], acks=[], life=[], server=[], round=[])
    record(made, "a/1", at=100)
    send(made, "0.1", "a/1", "a", at=200)
    record(made, "a/2", at=900)
    send(made, "0.2", "a/2", "a", at=980)
    if durability == "interval":
        record(made, "a/3", at=995)
    made.round.append({"what": "killed", "process": "a", "signal": "SIGKILL", "at": KILLED_AT})
    record(made, "b/1", at=1100)
    record(made, "b/2", at=1200)
    made.acks[-1] = {"mark": "b/2", "process": "b", "refused": "closed", "at": 1201 * MS}
    send(made, "0.3", "a/2", "b", at=1300)
    send(made, "0.4", "b/1", "b", at=1310, status=404)
    live(made, "b", "flushed", 1400, began=1250 * MS, done=True, seconds=1.0)
    live(made, "b", "leaving", 1500, how="close")
    live(made, "b", "closed", 1600)
    spool(made, "before the drain", 2000)
    live(made, "z", "drained", 2500, ledger=made.round[-1]["ledger"], problem=None)
    spool(made, "after the drain", 3000)
    for process, code in (("a", -9), ("b", 0), ("z", 0)):
        made.round.append({"what": "stall", "process": process, "nanoseconds": 2 * MS})
        made.round.append({"what": "ended", "process": process, "code": code, "planned": [code]})
    return made


def record(made: Evidence, mark: str, at: int) -> None:
    what = {"mark": mark, "process": mark[0], "envelope": "env_1", "amount": 7, "digest": logs.digest({"mark": mark})}
    made.intents.append({**what, "at": at * MS - 1})
    made.acks.append({**what, "id": f"key-{mark}", "at": at * MS})


def send(made: Evidence, attempt: str, mark: str, process: str, at: int, status: int = 201) -> None:
    """An attempt that takes 10 ms; booked, unless the status says otherwise."""
    known = {line["attempt"] for line in made.server if line["what"] == "booked"}
    keys = {line["key"] for line in made.server if line["what"] == "arrived" and line["attempt"] in known}
    key, body = f"key-{mark}", json.dumps({"envelopeId": "env_1", "amount": 7, "metadata": {"mark": mark}})
    made.server.append(
        {"what": "arrived", "attempt": attempt, "key": key, "process": process, "body": body, "at": at * MS}
    )
    if status == 201:
        made.server.append({"what": "booked", "attempt": attempt, "units": 0 if key in keys else 7, "at": at * MS + 1})
    made.server.append({"what": "answered", "attempt": attempt, "status": status, "at": (at + 10) * MS})


def live(made: Evidence, process: str, what: str, at: int, **more: Any) -> None:
    made.life.append({"process": process, "what": what, "at": at * MS, **more})


def spool(made: Evidence, when: str, at: int) -> None:
    dead = {"key": "key-b/1", "envelope": "env_1", "amount": 7, "metadata": {"mark": "b/1"}}
    dead.update(reason="envelope not found", status=404)
    ledger = {"recorded": [3, 21], "delivered": [2, 14], "pending": [0, 0], "dead": [1, 7], "dropped": [0, 0]}
    made.round.append({"what": "spool", "when": when, "at": at * MS, "pending": [], "dead": [dead], "ledger": ledger})


def lines(made: Evidence, log: str, **like: Any) -> List[Dict[str, Any]]:
    """The lines of a log that have these values."""
    found: List[Dict[str, Any]] = getattr(made, log)
    return [line for line in found if all(line.get(name) == value for name, value in like.items())]


def forget(made: Evidence, log: str, **like: Any) -> None:
    for line in lines(made, log, **like):
        getattr(made, log).remove(line)


# -- what is done to the evidence, and the rule that has to notice -----------------------------------------------


def a_process_hung(made: Evidence) -> None:
    made.round.append({"what": "hang", "name": "a did not end"})


def a_process_crashed(made: Evidence) -> None:
    lines(made, "round", what="ended", process="b")[0]["code"] = -11


def a_thread_failed(made: Evidence) -> None:
    made.noise["b"] = "Traceback (most recent call last):\n  KeyError: 1"


def an_event_was_lost(made: Evidence) -> None:
    record(made, "a/4", at=450)


def an_event_was_lost_by_a_process_that_closed(made: Evidence) -> None:
    record(made, "b/4", at=1499)


def an_event_was_lost_from_the_file(made: Evidence) -> None:
    lines(made, "round", what="spool")[1]["dead"].clear()


def an_event_came_from_nowhere(made: Evidence) -> None:
    send(made, "0.9", "x/1", "b", at=1350)


def a_refused_event_was_sent(made: Evidence) -> None:
    send(made, "0.9", "b/2", "b", at=1350)


def an_amount_changed_on_the_way(made: Evidence) -> None:
    lines(made, "intents", mark="a/1")[0]["amount"] = 8


def metadata_changed_on_the_way(made: Evidence) -> None:
    lines(made, "intents", mark="a/1")[0]["digest"] = "other"


def a_stored_event_changed(made: Evidence) -> None:
    lines(made, "round", what="spool")[0]["dead"][0]["amount"] = 8


def an_event_got_a_second_key(made: Evidence) -> None:
    lines(made, "server", attempt="0.3", what="arrived")[0]["key"] = "key-other"


def the_id_was_not_the_key(made: Evidence) -> None:
    lines(made, "acks", mark="a/1")[0]["id"] = "key-other"


def two_events_shared_a_key(made: Evidence) -> None:
    lines(made, "server", attempt="0.4", what="arrived")[0]["key"] = "key-a/1"


def a_body_was_written_anew(made: Evidence) -> None:
    line = lines(made, "server", attempt="0.3", what="arrived")[0]
    line["body"] = line["body"].replace(", ", ",")


def units_were_booked_twice(made: Evidence) -> None:
    lines(made, "server", attempt="0.3", what="booked")[0]["units"] = 7


def an_answered_event_was_sent_again(made: Evidence) -> None:
    send(made, "0.9", "a/1", "b", at=1350)


def a_process_sent_again_what_it_had_the_answer_to(made: Evidence) -> None:
    send(made, "0.9", "a/2", "b", at=1350)


def too_many_were_in_flight(made: Evidence) -> None:
    for count in range(CONCURRENCY + 1):
        record(made, f"a/9{count}", at=800)
        send(made, f"0.9{count}", f"a/9{count}", "a", at=995)


def two_processes_sent_at_once(made: Evidence) -> None:
    record(made, "b/5", at=1100)
    send(made, "0.91", "b/5", "b", at=1350)
    send(made, "0.92", "b/5", "c", at=1355)


def the_ledger_did_not_add_up(made: Evidence) -> None:
    lines(made, "round", what="spool")[0]["ledger"]["recorded"][0] += 1


def the_ledger_counted_other_units(made: Evidence) -> None:
    ledger = lines(made, "round", what="spool")[0]["ledger"]
    ledger["recorded"][1] += 1
    ledger["delivered"][1] += 1


def something_was_dropped(made: Evidence) -> None:
    ledger = lines(made, "round", what="spool")[0]["ledger"]
    ledger["recorded"] = [4, 28]
    ledger["dropped"] = [1, 7]


def a_post_was_stored_twice(made: Evidence) -> None:
    found = lines(made, "round", what="spool")[0]["dead"]
    found.append(found[0])


def the_drain_left_something(made: Evidence) -> None:
    after = lines(made, "round", what="spool")[1]
    after["pending"] = after["dead"]


def stats_said_something_else(made: Evidence) -> None:
    line = lines(made, "life", what="drained")[0]
    line["ledger"] = {**line["ledger"], "delivered": [9, 9]}


def nobody_looked_into_the_spool(made: Evidence) -> None:
    forget(made, "round", what="spool")


def a_letter_had_no_reason(made: Evidence) -> None:
    lines(made, "round", what="spool")[0]["dead"][0]["reason"] = ""


def a_letter_died_of_what_nobody_said(made: Evidence) -> None:
    lines(made, "round", what="spool")[0]["dead"][0]["status"] = 422


def a_letter_died_too_soon(made: Evidence) -> None:
    lines(made, "round", what="spool")[0]["dead"][0]["status"] = 500
    lines(made, "server", attempt="0.4", what="answered")[0]["status"] = 500


def flush_lied(made: Evidence) -> None:
    record(made, "b/6", at=1100)
    send(made, "0.9", "b/6", "b", at=1450)


def flush_took_too_long(made: Evidence) -> None:
    lines(made, "life", what="flushed")[0]["at"] += 2000 * MS


def close_took_too_long(made: Evidence) -> None:
    lines(made, "life", what="closed")[0]["at"] += 2000 * MS


TAMPERED = {
    a_process_hung: "nothing hangs",
    a_process_crashed: "ends as planned",
    a_thread_failed: "ends as planned",
    an_event_was_lost: "nothing is lost",
    an_event_was_lost_by_a_process_that_closed: "nothing is lost",
    an_event_was_lost_from_the_file: "nothing is lost",
    an_event_came_from_nowhere: "nothing is invented",
    a_refused_event_was_sent: "nothing is invented",
    an_amount_changed_on_the_way: "nothing is invented",
    metadata_changed_on_the_way: "nothing is invented",
    a_stored_event_changed: "nothing is invented",
    an_event_got_a_second_key: "one key for one event",
    the_id_was_not_the_key: "one key for one event",
    two_events_shared_a_key: "one key for one event",
    a_body_was_written_anew: "one body for one key",
    units_were_booked_twice: "units add up",
    an_answered_event_was_sent_again: "repeats have a reason",
    a_process_sent_again_what_it_had_the_answer_to: "repeats have a reason",
    too_many_were_in_flight: "few in flight",
    two_processes_sent_at_once: "one sender at a time",
    the_ledger_did_not_add_up: "the ledger agrees",
    the_ledger_counted_other_units: "the ledger agrees",
    something_was_dropped: "the ledger agrees",
    a_post_was_stored_twice: "the ledger agrees",
    the_drain_left_something: "the drain is complete",
    stats_said_something_else: "the drain is complete",
    nobody_looked_into_the_spool: "the drain is complete",
    a_letter_had_no_reason: "the dead have a reason",
    a_letter_died_of_what_nobody_said: "the dead have a reason",
    a_letter_died_too_soon: "the dead have a reason",
    flush_lied: "flush is honest",
    flush_took_too_long: "flush is honest",
    close_took_too_long: "close is prompt",
}


def test_a_round_in_which_all_is_well_is_passed() -> None:
    """A loss within 20 ms of a kill, a repeat of a lost answer and a dead letter with its reason are all allowed."""
    verdict = judge(evidence())

    assert verdict, verdict.sentences()
    assert verdict.figures["lost"] == 1
    assert verdict.figures["repeats"] == 1


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_what_was_tampered_with_is_noticed(tamper: Callable[[Evidence], None]) -> None:
    """Each way of breaking the promise is named by the rule that it breaks."""
    made = evidence()

    tamper(made)

    assert TAMPERED[tamper] in judge(made).broken


def test_every_rule_is_put_to_the_test() -> None:
    """A rule that nothing can break would be no rule."""
    assert set(RULES) == set(TAMPERED.values())


@pytest.mark.parametrize("durability", ["commit", "fsync"])
def test_a_kill_may_lose_nothing_of_what_was_committed(durability: str) -> None:
    """The last 20 ms are forgiven to `durability="interval"` alone."""
    made = evidence(durability)
    assert judge(made), judge(made).sentences()

    record(made, "a/3", at=999)

    assert "nothing is lost" in judge(made).broken


@pytest.mark.parametrize(("stall", "late"), [(2, True), (40, False)])
def test_what_the_machine_took_is_allowed_for(stall: int, late: bool) -> None:
    """A loss 50 ms before the kill is not even late when the machine itself stood still for 40 of them."""
    made = evidence()
    record(made, "a/4", at=950)

    lines(made, "round", what="stall", process="a")[0]["nanoseconds"] = stall * MS

    assert judge(made), judge(made).sentences()
    assert bool(judge(made).late) is late


def test_a_kill_that_came_too_late_is_not_the_end() -> None:
    """The process had left by `os._exit`, and nobody had asked for its code yet."""
    made = evidence()
    live(made, "a", "leaving", KILLED_AT // MS, how="os_exit")
    lines(made, "round", what="killed", process="a")[0]["at"] = KILLED_AT + 600 * MS
    assert "nothing is lost" in judge(made).broken

    lines(made, "round", what="ended", process="a")[0].update(code=4, planned=[4])

    assert judge(made), judge(made).sentences()


def test_what_is_lost_long_before_a_kill_is_lost() -> None:
    """However busy the machine: more than half a second is no delay any more."""
    made = evidence()

    record(made, "a/5", at=450)

    assert "nothing is lost" in judge(made).broken


def test_a_repeat_of_what_was_just_answered_is_late() -> None:
    """Answered 100 ms before the end and sent again: the next process might have known."""
    made = evidence()
    assert not judge(made).late

    for line in lines(made, "server", attempt="0.2"):
        line["at"] -= 90 * MS

    assert judge(made), judge(made).sentences()
    assert judge(made).late


@pytest.mark.parametrize(
    ("rounds", "late", "strict", "bad"), [(4, 1, False, False), (60, 13, False, True), (4, 1, True, True)]
)
def test_so_many_late_rounds_are_explained_by_a_busy_machine(rounds: int, late: int, strict: bool, bad: bool) -> None:
    """One in five, and none where it is said that the machine has nothing else to do."""
    verdicts = [Verdict({}, {}, ["late"] if number < late else []) for number in range(rounds)]

    outcomes = [Outcome(at, 1.0, "", verdict, [], pathlib.Path()) for at, verdict in enumerate(verdicts)]

    assert too_late(outcomes, strict) is bad


@pytest.mark.parametrize(("gone_after", "broken"), [(None, True), (10, False), (500, True)])
def test_an_answer_to_a_client_that_has_left_is_a_lost_answer(gone_after: Optional[int], broken: bool) -> None:
    """A client that closed the connection just after the answer had most likely given up: it may send again."""
    made = evidence()
    if gone_after is not None:
        made.server.append({"what": "gone", "attempt": "0.3", "at": (1310 + gone_after) * MS})

    send(made, "0.9", "a/2", "b", at=1950)

    assert ("repeats have a reason" in judge(made).broken) is broken


def test_half_an_answer_is_none() -> None:
    """The client cannot know what it says, however long the service takes to close the connection."""
    made = evidence()
    send(made, "0.9", "a/2", "b", at=1950)
    assert "repeats have a reason" in judge(made).broken

    lines(made, "server", attempt="0.3", what="answered")[0]["whole"] = False

    assert "repeats have a reason" not in judge(made).broken


def test_a_service_that_was_killed_while_it_refused_has_refused() -> None:
    """The client may have got the answer, although the service could not write down any more that it sent it."""
    made = evidence()
    forget(made, "server", attempt="0.4", what="answered")
    assert "the dead have a reason" in judge(made).broken

    made.server.append({"what": "refusing", "attempt": "0.4", "status": 404, "at": 1315 * MS})

    assert "the dead have a reason" not in judge(made).broken


def test_what_a_killed_service_had_not_answered_is_no_longer_under_way() -> None:
    """The connections end with the service, which cannot write that down any more."""
    made = evidence()
    for count in range(CONCURRENCY + 1):
        record(made, f"a/9{count}", at=800)
        send(made, f"0.9{count}", f"a/9{count}", "a", at=950)
        forget(made, "server", attempt=f"0.9{count}", what="answered")
    assert "few in flight" in judge(made).broken

    made.round.append({"what": "outage", "how": "kill", "seconds": 0.1, "at": 970 * MS})

    assert "few in flight" not in judge(made).broken


def test_a_service_that_ignores_keys_books_repeats_and_they_are_counted() -> None:
    """Then the units of a repeat are booked again, and the sum must say so."""
    made = evidence()
    made.honours_keys = False
    lines(made, "server", attempt="0.3", what="booked")[0]["units"] = 7

    assert judge(made), judge(made).sentences()
