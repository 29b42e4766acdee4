import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.config import load
from capture.errors import ConfigError
from capture.redaction import BUILT_IN, RedactConfig, Redactor, has_iban_digits, has_luhn_digit

EVERYTHING = Redactor(
    RedactConfig.model_validate(
        {"enabled": list(BUILT_IN), "patterns": {"order": r"ORD-\d+", "letter": "e"}}
    )
)
BUILT_INS = Redactor(RedactConfig.model_validate({"enabled": list(BUILT_IN)}))
SECRETS = [
    ("email", "bob.o'neil+x@mail.example.co.uk"),
    ("email", "jörg@exämple.de"),
    ("phone", "+49 (0)30 1234567"),
    ("phone", "+14155552671"),
    ("phone", "(415) 555-2671"),
    ("phone", "415-555-2671"),
    ("phone", "030 12345678"),
    ("phone", "06 12 34 56 78"),
    ("card", "4111 1111 1111 1111"),
    ("card", "5500-0000-0000-0004"),
    ("card", "378282246310005"),
    ("iban", "DE89 3704 0044 0532 0130 00"),
    ("iban", "gb82west12345698765432"),
    ("api_key", "sk-proj-abc123DEF456ghi789"),
    ("api_key", "ghp_0123456789abcdefghijABCDEFGHIJ012345"),
    ("api_key", "AKIAIOSFODNN7EXAMPLE"),
    ("jwt", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N"),
    ("bearer", "Bearer abcdef0123456789"),
    ("private_key", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"),
]
HARMLESS = [
    "order 1234567890123 of 2026-11-24 12:30:45, total 1,234.50",
    "card 4111 1111 1111 1112",
    "DE88370400440532013000",
    "sk-learn and scikit-learn, bearer certificate, @home, a@b",
    "192.168.100.12:8080, v1.2.3, 3.14159265358979",
    '{"intent": "order", "id": 17}',
]

# Pieces that meet each other's patterns at their edges, glued together in any order.
PIECES = st.sampled_from(
    [
        *(text for _, text in SECRETS),
        *HARMLESS,
        "4111 1111 ",
        "1111",
        "@",
        ".",
        " ",
        "[redacted:",
        "]",
        "[redacted:email]",
    ]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=6).map("".join))


@pytest.mark.parametrize(("name", "secret"), SECRETS)
def test_a_secret_is_replaced_and_its_surroundings_stay(name: str, secret: str) -> None:
    only = Redactor(RedactConfig.model_validate({"enabled": [name]}))
    expected = f"write to <[redacted:{name}]>, please"
    if name == "email":  # an apostrophe ends the local part that is looked for
        secret = secret.replace("'", "")
    assert only.text(f"write to <{secret}>, please") == expected


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_a_secret_stays(text: str) -> None:
    assert BUILT_INS.text(text) == text


def test_a_card_beside_another_number_is_found() -> None:
    redacted = BUILT_INS.text("items 1234 4111 1111 1111 1111 99")
    assert redacted == "items 1234 [redacted:card] 99"


@given(text=TEXTS)
def test_redacting_again_changes_nothing(text: str) -> None:
    once = EVERYTHING.text(text)
    assert EVERYTHING.text(once) == once


@given(
    secret=st.sampled_from([text for _, text in SECRETS if "'" not in text]),
    before=st.sampled_from(["", "a ", "(", "\n", "x: "]),
    after=st.sampled_from(["", " b", ")", "\n", ", y"]),
)
def test_no_secret_survives_between_other_words(secret: str, before: str, after: str) -> None:
    assert secret not in BUILT_INS.text(before + secret + after)


@given(digits=st.text("0123456789", min_size=12, max_size=18))
def test_exactly_one_digit_passes_the_luhn_check(digits: str) -> None:
    assert sum(has_luhn_digit(f"{digits}{last}") for last in range(10)) == 1


@given(account=st.text("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=11, max_size=30))
def test_an_iban_has_one_pair_of_check_digits(account: str) -> None:
    passing = [n for n in range(2, 99) if has_iban_digits(f"DE{n:02}{account}")]
    assert len(passing) == 1


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    )
)
def test_json_stays_json_and_is_redacted_once(value: object) -> None:
    once = EVERYTHING.value(value)
    assert EVERYTHING.value(once) == once
    json.dumps(once)


def test_keys_and_numbers_are_redacted_too() -> None:
    value = {"bob@example.com": [4111111111111111, 17, True, None, 1.5]}
    assert BUILT_INS.value(value) == {"[redacted:email]": ["[redacted:card]", 17, True, None, 1.5]}


def test_without_a_configuration_nothing_is_looked_for() -> None:
    nothing = Redactor(RedactConfig())
    assert not nothing.is_active
    assert nothing.text("bob@example.com") == "bob@example.com"


def test_a_long_text_takes_a_time_in_proportion() -> None:
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/.-_ %@"
    drawn = random.Random(0).choices(alphabet, k=50_000)
    for text in (
        "".join(drawn),
        "a" * 50_000,
        "1 " * 25_000,
        "1" * 50_000,
        "a.b@" * 12_000,
        "eyJ" * 17_000,
    ):
        started = time.perf_counter()
        BUILT_INS.text(text)
        assert time.perf_counter() - started < 5.0


def written(folder: Path, text: str) -> Path:
    path = folder / "retort.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_own_patterns_come_from_the_configuration(tmp_path: Path) -> None:
    table = "[capture.redact]\nenabled = ['email']\npatterns = { order = 'ORD-\\d+' }\n"
    redactor = Redactor(load(written(tmp_path, table)).redact)
    assert redactor.text("ORD-17 of a@b.org") == "[redacted:order] of [redacted:email]"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "patterns = { order = '(' }",
            r"\[capture\]\.redact\.patterns: order is not a regular exp",
        ),
        ("patterns = { order = 'x*' }", "order matches the empty text"),
        ("patterns = { Order = 'x' }", "'Order' is no name for a pattern"),
        ("enabled = ['emails']", r"redact\.enabled\.0 is 'emails': .*'email'"),
        ("enable = ['email']", "did you mean 'enabled'"),
    ],
)
def test_a_wrong_pattern_is_named(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(written(tmp_path, f"[capture.redact]\n{table}\n"))
