import pytest

from gateway.exchange import Request
from gateway.gate import ASSUMED_TOKENS, needed


def request(**parsed: object) -> Request:
    return Request("/v1/completions", "support", b"x" * 40, parsed, stream=False, conversation="")


@pytest.mark.parametrize(
    ("parsed", "completion"),
    [
        ({}, ASSUMED_TOKENS),
        ({"max_tokens": None}, ASSUMED_TOKENS),
        ({"max_tokens": 50}, 50),
        ({"max_tokens": 50.0}, 50),
        ({"max_tokens": 50, "max_completion_tokens": 70}, 70),
        ({"max_tokens": 50, "n": 3}, 150),
        ({"max_tokens": 50, "n": 3.0}, 150),
        ({"max_tokens": 50, "n": 2, "best_of": 5}, 250),
        ({"max_tokens": 50, "prompt": ["a", "b"], "n": 3}, 300),
        ({"max_tokens": 50, "prompt": [1, 2]}, 50),
        ({"max_tokens": -(10**9)}, ASSUMED_TOKENS),
        ({"max_tokens": 50, "n": -5}, 50),
        ({"n": -5}, ASSUMED_TOKENS),
    ],
)
def test_what_a_request_may_take_is_reserved_whatever_it_says(
    parsed: dict[str, object], completion: int
) -> None:
    assert needed(request(**parsed)) == 10 + completion
