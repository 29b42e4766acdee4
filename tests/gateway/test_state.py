"""The store keeps what it promised, through conflicts and kills."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from threading import Timer

import pytest
from hypothesis import given

from capture.errors import ConfigError
from gateway.database import open_database
from gateway.errors import RolloutNotFoundError, StateConflictError, StateStoreError
from gateway.evidence import Evidence
from gateway.guards import Reason, Verdict
from gateway.rollout import Rollout, promote, roll_back, transition
from gateway.state import StateStore
from tests.gateway.strategies import EVIDENCE

IN_SQLITE = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
REASONS = (Reason("agreement", "breached", 0.1, 0.3, 0.9, "floor", 20, "rare"),)

WRITER = """
import sys
from datetime import UTC, datetime
from gateway.rollout import Rollout, promote
from gateway.state import StateStore

store = StateStore(sys.argv[1])
steps = tuple(number / 10_000 for number in range(1, 5_000))
moved = Rollout("r1", "support", "b", "c", steps, datetime.now(UTC))
version = 0
while True:
    version = store.save(moved, version)
    print(version, flush=True)
    moved = promote(moved, datetime.now(UTC))
"""


def new(rollout_id: str = "r1", route: str = "support", minutes: int = 0) -> Rollout:
    started = NOW + timedelta(minutes=minutes)
    return Rollout(
        rollout_id, route, "bundles/int8", f"{route}-{rollout_id}", (0.05, 0.25), started
    )


@pytest.fixture
def store(url: str) -> Iterator[StateStore]:
    opened = StateStore(url)
    yield opened
    opened.close()


def test_a_rollout_comes_back_as_it_was_saved_after_reopening(url: str, store: StateStore) -> None:
    moved = transition(new(), Verdict("advance", REASONS), NOW)
    version = store.save(moved, 0)
    moved = roll_back(moved, NOW + timedelta(hours=1), "no good", REASONS)
    version = store.save(moved, version)
    store.close()

    reopened = StateStore(url)

    assert reopened.load("r1") == (moved, version)
    reopened.close()


def test_moments_in_other_zones_come_back_as_the_same_moment_in_utc(store: StateStore) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5)))

    store.save(promote(replace(new(), started_at=elsewhere), elsewhere), 0)

    loaded = store.load("r1").rollout
    assert (loaded.started_at, loaded.history[0].at) == (NOW, NOW)
    assert loaded.started_at.tzinfo == UTC


def test_the_second_of_two_writers_is_refused_and_changes_nothing(store: StateStore) -> None:
    version = store.save(new(), 0)
    first, second = promote(new(), NOW), roll_back(new(), NOW, "no")
    store.save(first, version)

    with pytest.raises(StateConflictError, match="no longer at version 1"):
        store.save(second, version)

    assert store.load("r1") == (first, 2)


def test_of_many_writers_at_once_exactly_one_wins(url: str, store: StateStore) -> None:
    store.save(new(), 0)
    moved = [roll_back(new(), NOW, f"writer {n}") for n in range(8)]

    def attempt(rollout: Rollout) -> str | None:
        own = StateStore(url)
        try:
            own.save(rollout, 1)
        except StateConflictError:
            return None
        finally:
            own.close()
        return rollout.history[0].note

    with ThreadPoolExecutor(8) as pool:
        winners = [note for note in pool.map(attempt, moved) if note is not None]

    assert [move.note for move in store.load("r1").rollout.history] == winners
    assert len(winners) == 1


def test_an_empty_database_may_be_opened_by_many_at_once(url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(StateStore, [url] * 8))

    stores[0].save(new(), 0)
    assert stores[1].load("r1").rollout == new()
    for opened in stores:
        opened.close()


@IN_SQLITE
def test_a_file_being_written_by_another_is_waited_for(url: str) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")  # its log is not ahead yet: SQLite says "locked" at once
        release = Timer(0.5, other.rollback)
        release.start()
        StateStore(url).close()
        release.join()


def test_a_route_has_one_rollout_under_way_at_most(store: StateStore) -> None:
    store.save(new("r1"), 0)
    store.save(new("r2", route="other"), 0)

    with pytest.raises(StateConflictError, match="'support' already has a rollout under way"):
        store.save(new("r3"), 0)

    store.save(roll_back(new("r1"), NOW, "make room"), 1)
    store.save(new("r3"), 0)
    active = store.active("support")
    assert active is not None
    assert active.rollout.id == "r3"


def test_the_incumbent_is_what_went_live_last_and_was_not_rolled_back(store: StateStore) -> None:
    assert store.live("support") is None
    for number in (1, 2):
        live = replace(new(f"r{number}", minutes=number), state="live")
        store.save(live, 0)
    last = store.live("support")
    assert last is not None
    assert last.rollout.id == "r2"

    store.save(roll_back(last.rollout, NOW, "no good after all"), last.version)

    last = store.live("support")
    assert last is not None
    assert last.rollout.id == "r1"
    assert store.active("support") is None


def test_rollouts_are_listed_in_the_order_they_were_started(store: StateStore) -> None:
    for number, route in ((3, "c"), (1, "a"), (2, "b")):
        store.save(new(f"r{number}", route, minutes=number), 0)

    assert [saved.rollout.id for saved in store.rollouts()] == ["r1", "r2", "r3"]
    assert [saved.rollout.id for saved in store.rollouts("b")] == ["r2"]


def test_an_unknown_rollout_is_named(store: StateStore) -> None:
    with pytest.raises(RolloutNotFoundError, match="no rollout 'r9'"):
        store.load("r9")


@given(EVIDENCE)
def test_evidence_survives_the_database(evidence: Evidence) -> None:
    store = StateStore("sqlite://")
    moved = promote(replace(new(), evidence=evidence), NOW)

    store.save(replace(moved, evidence=evidence), 0)

    assert store.load("r1").rollout == replace(moved, evidence=evidence)
    store.close()


def test_a_killed_writer_leaves_whole_moves_only(url: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 40:
                break
        process.kill()
        reported = max([40, *map(int, process.stdout)])

    store = StateStore(url)
    rollout, version = store.load("r1")
    assert version in {reported, reported + 1}
    assert len(rollout.history) == version - 1
    assert rollout.step == len(rollout.history) - 1
    assert store.save(promote(rollout, NOW), version) == version + 1
    store.close()


def test_a_store_that_cannot_be_opened_says_which_setting_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(StateStoreError, match="unable to open database file; see state_url"):
        StateStore(f"sqlite:///{tmp_path / 'missing' / 'state.db'}")
    with pytest.raises(ConfigError, match="see state_url"):
        StateStore("nonsense")
    with pytest.raises(ConfigError, match="see state_url"):
        StateStore("mysql+nodriver://user:secret@host/db")


@IN_SQLITE
def test_a_store_that_fails_while_open_is_reported_without_statements(
    tmp_path: Path, url: str, store: StateStore
) -> None:
    other = sqlite3.connect(tmp_path / "state.db")
    other.execute("DROP TABLE decisions")
    other.close()

    with pytest.raises(StateStoreError, match="no such table: decisions; see") as caught:
        store.save(promote(new(), NOW), 0)

    assert "SELECT" not in str(caught.value)
    with pytest.raises(StateStoreError):
        store.rollouts()
    assert url.endswith("state.db")


@IN_SQLITE
def test_a_failed_save_leaves_nothing_behind(tmp_path: Path, store: StateStore) -> None:
    other = sqlite3.connect(tmp_path / "state.db")
    other.execute(
        "CREATE TRIGGER full BEFORE INSERT ON decisions BEGIN SELECT RAISE(FAIL, 'disk full'); END"
    )
    other.commit()

    with pytest.raises(StateStoreError, match="disk full"):
        store.save(promote(new(), NOW), 0)

    assert other.execute("SELECT count(*) FROM rollouts").fetchone() == (0,)
    other.close()


@IN_SQLITE
def test_in_sqlite_readers_and_a_writer_do_not_hold_each_other_up(
    tmp_path: Path, store: StateStore
) -> None:
    store.save(new(), 0)
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM rollouts").fetchall()

    store.save(promote(new(), NOW), 1)

    other.execute("COMMIT")
    other.execute("BEGIN IMMEDIATE")
    other.execute("UPDATE rollouts SET state = 'live'")
    assert store.load("r1").rollout.state == "canary"
    other.execute("COMMIT")
    other.close()
    assert store.load("r1").rollout.state == "live"


@IN_SQLITE
def test_an_older_store_learns_that_one_that_replaces_is_under_way_too(
    tmp_path: Path, url: str
) -> None:
    StateStore(url).close()
    old = sqlite3.connect(tmp_path / "state.db")
    old.execute("DROP INDEX one_rollout_under_way_per_route")
    old.execute(
        "CREATE UNIQUE INDEX one_active_rollout_per_route ON rollouts (route) "
        "WHERE state IN ('shadow', 'canary')"
    )
    old.commit()
    old.close()
    store = StateStore(url)
    store.save(replace(new("r1"), state="replacing"), 0)

    with pytest.raises(StateConflictError, match="under way"):
        store.save(new("r2"), 0)

    active = store.active("support")
    store.close()
    assert active is not None
    assert active.rollout.replaces


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_statements_have_ten_seconds_within_our_transactions_only(url: str) -> None:
    """A pool between us and the server may hand our session on."""
    engine = open_database(url)
    ask = "SHOW statement_timeout"
    with engine.connect() as connection:
        ours = connection.exec_driver_sql(ask).scalar_one()
        connection.rollback()
        cursor = connection.connection.cursor()
        cursor.execute(ask)
        left = cursor.fetchone()
    engine.dispose()

    assert (ours, left) == ("10s", ("0",))


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_url_may_say_how_long_statements_have(url: str) -> None:
    engine = open_database(f"{url}?options=-c%20statement_timeout%3D1234")
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SHOW statement_timeout").scalar_one()
    engine.dispose()

    assert found == "1234ms"
