from hypothesis import given
from hypothesis import strategies as st

from gateway.health import RETRY_BURST, Member, PoolConfig, RetryBudget, pause_seconds

CONFIG = PoolConfig(eject_after=3, probe_seconds=10, eject_seconds=8)


def test_an_engine_is_ejected_after_failures_in_a_row() -> None:
    member = Member("a")

    ejected = [member.fail("failed", now, CONFIG) for now in (1, 2, 3)]

    assert ejected == [False, False, True]
    assert member.state == "ejected"


def test_an_answer_between_failures_starts_the_count_anew() -> None:
    member = Member("a")
    for now in range(9):
        if now % 3 == 2:
            member.serve(now)
        else:
            member.fail("failed", now, CONFIG)

    assert member.state == "serving"


def test_an_engine_that_nobody_listens_for_is_ejected_at_once() -> None:
    member = Member("a")

    assert member.fail("gone", 1, CONFIG)


def test_an_ejected_engine_is_asked_at_once_and_then_with_growing_pauses() -> None:
    member = Member("a")
    member.fail("gone", 100, CONFIG)
    asked, now = [], 100.0
    for _ in range(6):
        while not member.is_due(now, CONFIG):
            now += 0.5
        asked.append(now - 100)
        member.probed(now, CONFIG, is_well=False)

    assert asked == [0, 1, 3, 7, 15, 23]  # pauses of 1, 2, 4, 8, 8 s


def test_an_engine_that_generates_again_serves_again() -> None:
    member = Member("a")
    member.fail("gone", 100, CONFIG)
    member.probed(100, CONFIG, is_well=True)

    assert (member.state, member.failures) == ("serving", 0)


def test_an_engine_that_fails_again_soon_is_kept_out_for_longer() -> None:
    member = Member("a")
    for now in (100.0, 101.0):
        member.fail("gone", now, CONFIG)
        member.probed(now, CONFIG, is_well=True)
    member.fail("gone", 102, CONFIG)
    soon = member.probe_at - 102
    member.probed(105, CONFIG, is_well=True)
    member.serve(200)  # it has served steadily since
    member.fail("gone", 201, CONFIG)

    assert soon == 2
    assert member.probe_at == 201


def test_a_silent_engine_is_asked_and_ejected_if_it_stays_silent() -> None:
    member = Member("a", heard_at=100)

    assert not member.is_due(109, CONFIG)
    assert member.is_due(110, CONFIG)
    assert member.probed(120, CONFIG, is_well=False)
    assert member.state == "ejected"


def test_an_engine_whose_process_has_ended_is_not_asked() -> None:
    member = Member("a", "down")

    assert not member.is_due(1e9, CONFIG)
    assert not member.probed(1e9, CONFIG, is_well=True)
    assert member.state == "down"


@given(st.integers(0, 10_000), st.floats(1, 1e6))
def test_pauses_are_bounded(ejections: int, longest: float) -> None:
    assert 0 <= pause_seconds(ejections, longest) <= longest


@given(st.lists(st.booleans(), max_size=1000))
def test_retries_stay_a_share_of_requests(retries: list[bool]) -> None:
    budget = RetryBudget(0.2)
    made = 0
    for wanted in retries:
        budget.earn()
        made += wanted and budget.spend()

    assert made <= RETRY_BURST + 0.2 * len(retries)
