"""Faults one after the other: what a plan says, and what an emulator that follows it does."""

from __future__ import annotations

import http.client

import pytest

from tests.emulator.wire import ask, record
from x402tools import UsageBuffer, X402Client
from x402tools.emulator.faults import BadFault, FaultScript
from x402tools.emulator.faults import Fault as Rule
from x402tools.testing import Emulator, Fault, FaultPlan

# As the issue of every outage: errors, then the uncertain case, then a service that asks for patience.
BAD_MORNING = (
    FaultPlan()
    .then(Fault.status(500), times=3)
    .then(Fault.reset_after_commit())
    .then(Fault.rate_limited(retry_after=0.1), seconds=0.3)
)


def test_requests_meet_the_steps_one_after_the_other(emulator: Emulator) -> None:
    """Each as often as it says, and then all is well."""
    envelope_id = emulator.create_envelope()
    emulator.follow(FaultPlan().then(Fault.status(500), times=2).then_healthy().then(Fault.unavailable(), times=1))

    statuses = [record(emulator, envelope_id).status for _ in range(6)]

    assert statuses == [500, 500, 201, 503, 201, 201]
    assert emulator.faults_fired() == [2, 1, 1]


def test_a_plan_is_about_its_own_requests(emulator: Emulator) -> None:
    """Others pass by, and bring it no further."""
    envelope_id = emulator.create_envelope()
    emulator.follow(FaultPlan().then(Fault.status(500)).then(Fault.status(502, method="GET", path="/usage/*")))

    seen = [ask(emulator, "GET", path).status for path in ("/envelopes", "/usage", "/usage/stats")]
    seen += [record(emulator, envelope_id).status]
    seen += [ask(emulator, "GET", "/usage/stats").status for _ in range(2)]

    assert seen == [200, 200, 200, 500, 502, 200]


def test_a_buffer_gets_every_event_through_a_bad_morning(emulator: Emulator, x402_buffer: UsageBuffer) -> None:
    """Every step is met, and every event is booked once."""
    envelope_id = emulator.create_envelope()
    emulator.follow(BAD_MORNING)

    for _ in range(20):
        x402_buffer.record(envelope_id, 1)
    result = x402_buffer.flush(60)

    errors, resets, refusals = emulator.faults_fired()
    assert result
    assert (errors, resets) == (3, 1)
    assert refusals >= 1
    assert emulator.ledger().events == 20
    assert emulator.ledger().repeats_dropped >= 1


def test_a_step_that_lasts_is_over_after_its_seconds() -> None:
    """The time begins with the first request that meets it, not with the step before it."""
    now = [100.0]
    rules = [Rule.from_json(step.to_json()) for step in BAD_MORNING.steps]
    script = FaultScript(rules, clock=lambda: now[0])

    def drawn() -> str:
        now[0] += 0.125
        rule = script.draw("POST", "/usage")
        return rule.kind if rule else "well"

    before = [drawn() for _ in range(4)]
    now[0] += 1000
    after = [drawn() for _ in range(5)]

    assert before == ["status"] * 3 + ["reset_after"]
    assert after == ["status"] * 3 + ["well"] * 2


def test_a_share_keeps_the_order() -> None:
    """A request that does not meet the step is handled as usual, rather than meeting the next one."""
    plan = FaultPlan().then(Fault.status(500, share=0.3, seed=1), times=5).then(Fault.html_error(), times=5)
    script = FaultScript([Rule.from_json(step.to_json()) for step in plan.steps])

    drawn = [script.draw("POST", "/usage") for _ in range(100)]

    kinds = [rule.kind for rule in drawn if rule]
    assert kinds == ["status"] * 5 + ["html"] * 5
    assert drawn.index(None) < 10


def test_a_plan_can_go_round(emulator: Emulator) -> None:
    """`repeated` says the steps again."""
    envelope_id = emulator.create_envelope()
    emulator.follow(FaultPlan().then(Fault.status(500)).then_healthy().repeated(3))

    assert [record(emulator, envelope_id).status for _ in range(7)] == [500, 201] * 3 + [201]


def test_what_never_ends_comes_last() -> None:
    """Nothing can follow it, and a step has one end."""
    for_ever = FaultPlan().then(Fault.status(503), for_ever=True)

    with pytest.raises(ValueError, match="never ends"):
        for_ever.then_healthy()
    with pytest.raises(ValueError, match="never ends"):
        for_ever.repeated(2)
    with pytest.raises(ValueError, match="one of them"):
        FaultPlan().then(Fault.status(503), times=1, seconds=1)
    with pytest.raises(ValueError, match="at least once"):
        for_ever.repeated(0)


def test_plans_are_not_changed_by_what_follows() -> None:
    """So one can be the beginning of many."""
    beginning = FaultPlan().then(Fault.status(500))

    longer = beginning.then(Fault.status(502))

    assert (len(beginning.steps), len(longer.steps)) == (1, 2)


@pytest.mark.parametrize("field", ["lasts", "stage"])
@pytest.mark.parametrize("value", [-1, "soon", True])
def test_a_step_out_of_range_is_refused(field: str, value: object) -> None:
    """The message names the field."""
    with pytest.raises(BadFault, match=field):
        Rule.from_json({"kind": "status", field: value})


def test_the_client_alone_meets_a_plan_too(emulator: Emulator, x402_client: X402Client) -> None:
    """Its own retries carry it over two errors, with one booking."""
    envelope_id = emulator.create_envelope()
    emulator.follow(FaultPlan().then(Fault.reset_after_commit()).then(Fault.unavailable()))

    usage = x402_client.record_usage(envelope_id, 7)

    assert usage.amount == 7
    assert emulator.ledger().units == 7
    assert emulator.faults_fired() == [1, 1]
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        record(emulator, envelope_id, fault="reset_before")
