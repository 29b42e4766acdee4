from gateway.evidence import Count, Evidence
from gateway.exchange import Exchange, Request
from gateway.observed import RECENT, Recent, outcome_of
from gateway.pool import Pool
from gateway.routing import Deployment, Role

ANSWER = b'{"choices": [{"index": 0, "message": {"content": "{}"}, "finish_reason": "stop"}]}'


def exchange(
    deployment: str = "teacher", role: Role = "incumbent", path: str = "/v1/chat/completions"
) -> Exchange:
    """One that waited two seconds for its engine, which took half a second."""
    request = Request(path, "support", b"{}", {}, stream=False, conversation="c")
    answered_by = Deployment(deployment, Pool(()), deployment, None, capture=False)
    made = Exchange("x", request, answered_by, role, http_status=200)
    made.take(ANSWER)
    assert made.first_byte is not None
    made.asked, made.started = made.first_byte - 0.5, made.first_byte - 2.5
    return made


def test_an_answer_is_timed_from_when_its_engine_was_asked() -> None:
    shown = outcome_of(exchange(role="candidate"))

    assert (shown.failed, shown.valid, shown.role) == (False, True, "candidate")
    assert shown.ttft_seconds is not None
    assert abs(shown.ttft_seconds - 0.5) < 1e-9


def test_one_asked_too_early_is_not_timed_and_counts_for_the_rest() -> None:
    asked = exchange()
    assert asked.asked is not None

    shown = outcome_of(asked, timed_from=asked.asked + 0.1)

    assert shown.ttft_seconds is shown.duration_seconds is None
    assert shown.valid


def test_the_latest_answers_of_one_deployment_are_remembered() -> None:
    recent = Recent()
    recent.note(exchange("older"))
    for _ in range(RECENT + 5):
        recent.note(exchange())
    for other in (exchange(role="candidate"), exchange(role="shadow"), exchange(path="/tokenize")):
        recent.note(other)

    assert recent.evidence("teacher").incumbent_valid == Count(RECENT, RECENT)
    assert sum(recent.evidence("teacher").incumbent_ttfts.values()) == RECENT
    assert recent.evidence("older") == Evidence()
