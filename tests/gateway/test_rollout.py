"""A rollout moves only as it may, and remembers why."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RolloutError
from gateway.evidence import Count, Evidence
from gateway.guards import Guards, Reason, Verdict, judge
from gateway.pool import Pool
from gateway.rollout import (
    Decision,
    Rollout,
    begin_watch,
    canary_share,
    decision_json,
    promote,
    roll_back,
    rollout_json,
    transition,
)
from gateway.routing import Deployment, Route

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BREACH = Reason("agreement", "breached", 0.0, 0.2, 0.9, "floor", 20)
PASS = Reason("error_rate", "passed", 0.0, 0.01, 0.02, "ceiling", 400)
ADVANCE = Verdict("advance", ())
ROLLBACK = Verdict("rollback", (PASS, BREACH))
WAIT = Verdict("wait", ())


def rollout(*steps: float) -> Rollout:
    return Rollout("r1", "support", "bundles/int8", "support-r1", steps, NOW)


def test_a_good_candidate_goes_from_shadow_over_every_step_to_live() -> None:
    moved = rollout(0.05, 0.25)
    seen = [(moved.state, canary_share(moved))]

    while moved.is_active:
        moved = transition(moved, ADVANCE, NOW)
        seen.append((moved.state, canary_share(moved)))

    assert seen == [("shadow", 0.0), ("canary", 0.05), ("canary", 0.25), ("live", 1.0)]
    assert [decision.share for decision in moved.history] == [0.05, 0.25, 1.0]


def test_without_canary_steps_shadow_leads_to_live() -> None:
    assert transition(rollout(), ADVANCE, NOW).state == "live"


def test_waiting_changes_nothing() -> None:
    assert transition(rollout(0.05), WAIT, NOW) == rollout(0.05)


@pytest.mark.parametrize("advances", [0, 1, 2, 3])
def test_every_state_can_be_rolled_back_and_then_nothing_more(advances: int) -> None:
    moved = rollout(0.05, 0.25)
    for _ in range(advances):
        moved = transition(moved, ADVANCE, NOW)

    back = transition(moved, ROLLBACK, NOW)

    assert back.state == "rolled_back"
    assert canary_share(back) == 0.0
    for verdict in (ADVANCE, ROLLBACK):
        with pytest.raises(RolloutError, match="rolled"):
            transition(back, verdict, NOW)
    with pytest.raises(RolloutError, match="expected one under way"):
        promote(back, NOW)
    with pytest.raises(RolloutError, match="rolled back already"):
        roll_back(back, NOW, "again")


def test_what_is_live_cannot_be_promoted() -> None:
    live = transition(rollout(), ADVANCE, NOW)

    with pytest.raises(RolloutError, match="is live, expected one under way"):
        promote(live, NOW)


def test_a_move_is_written_down_with_all_it_rested_on_and_a_new_stage_starts_anew() -> None:
    seen = Evidence(agreed=Count(0, 20))
    moved = Rollout("r1", "support", "b", "c", (0.05,), NOW, evidence=seen)

    back = transition(moved, ROLLBACK, NOW)

    assert back.evidence == Evidence()
    assert back.history == (
        Decision(
            at=NOW,
            source="shadow",
            target="rolled_back",
            share=0.0,
            by="guards",
            note="breached: agreement",
            reasons=ROLLBACK.reasons,
            evidence=seen,
        ),
    )


def test_an_operator_is_named_as_such() -> None:
    moved = roll_back(promote(rollout(0.5), NOW), NOW, "too many complaints")

    assert [(move.by, move.target, move.note) for move in moved.history] == [
        ("operator", "canary", ""),
        ("operator", "rolled_back", "too many complaints"),
    ]


def test_the_admin_api_shows_a_rollout_with_what_the_guards_make_of_it() -> None:
    seen = Evidence(failed=Count(0, 20), agreed=Count(0, 20))
    moved = promote(Rollout("r1", "support", "b", "c", (0.05, 0.25), NOW, evidence=seen), NOW)
    verdict = judge("shadow", seen, Guards(), moved.num_stages)

    shown = rollout_json(moved, verdict)

    assert shown["state"] == "canary"
    assert shown["canary_share"] == 0.05
    assert shown["steps"] == [0.05, 0.25]
    assert shown["started_at"] == "2026-01-02T03:04:05Z"
    assert "history" not in shown
    assert isinstance(shown["verdict"], dict)
    assert shown["verdict"]["action"] == "rollback"
    assert rollout_json(moved)["verdict"] is None
    assert decision_json(moved.history[0])["target"] == "canary"


@given(st.lists(st.text(), min_size=1, max_size=30), st.floats(0, 1), st.floats(0, 1))
def test_a_conversation_given_to_the_candidate_stays_there_as_its_share_grows(
    keys: list[str], one: float, other: float
) -> None:
    incumbent, candidate = (Deployment(name, Pool(()), "", None, False) for name in ("old", "new"))
    less, more = (Route(incumbent, candidate, share) for share in sorted((one, other)))

    chosen = {key for key in keys if less.choose(key)[0] is candidate}

    assert all(more.choose(key)[0] is candidate for key in chosen)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.25, 1.0])
def test_the_candidate_gets_its_share_of_conversations(share: float) -> None:
    incumbent, candidate = (Deployment(name, Pool(()), "", None, False) for name in ("old", "new"))
    route = Route(incumbent, candidate, share)

    taken = sum(route.choose(f"user {n}")[0] is candidate for n in range(20_000))

    assert taken / 20_000 == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)


def replacing() -> Rollout:
    shown = Evidence(incumbent_failed=Count(1, 9))
    return Rollout("r1", "support", "b", "support-r1", (), NOW, "replacing", evidence=shown)


def test_one_that_replaces_is_watched_before_it_is_live() -> None:
    watched = begin_watch(replacing(), NOW, "its engine has answered")
    live = transition(watched, ADVANCE, NOW)

    assert [canary_share(each) for each in (replacing(), watched, live)] == [0.0, 1.0, 1.0]
    assert [move.target for move in live.history] == ["watch", "live"]
    assert [each.replaces for each in (replacing(), watched, live)] == [True] * 3
    assert watched.num_stages == 1
    assert not rollout(1.0).replaces


def test_what_the_incumbent_has_shown_stays_in_watch_and_the_engine_comes_once() -> None:
    watched = begin_watch(replacing(), NOW, "")

    assert watched.evidence.incumbent_failed == Count(1, 9)
    assert begin_watch(watched, NOW, "") is watched
    back = roll_back(replacing(), NOW, "no")
    assert begin_watch(back, NOW, "") is back
    assert back.replaces


def test_no_operator_promotes_an_engine_that_is_not_there() -> None:
    with pytest.raises(RolloutError, match="does not answer yet"):
        promote(replacing(), NOW)
    assert promote(begin_watch(replacing(), NOW, ""), NOW).state == "live"


def test_nobody_is_sent_to_a_route_that_is_held() -> None:
    deployments = [
        Deployment(name, Pool(["http://127.0.0.1:1"]), name, None, capture=False)
        for name in ("old", "new")
    ]
    old, new = deployments
    new.pool.set_aside()

    assert Route(old).is_answering
    assert not Route(old, is_held=True).is_answering
    assert not Route(old, new, 1.0).is_answering
    assert Route(old, new, 0.5).is_answering
