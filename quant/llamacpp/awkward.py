"""Strings that tokenizers disagree on (data)."""

LETTERS = "The quick brown fox can't jump; I'LL we've they'd O'Reilly's naïve café_x a_b aB9"
DIGITS = "0 7 42 123 1234 12345 1234567 3.14 1,000,000 0x1F 1e-9 ² ½ Ⅷ ٣٤٥ 一二三 १२३"
MARKS = "e\u0301 a\u0308\u0323 n\u0303o\u0302 q\u0307 \u0301 \u1112\u1161\u11ab क्षि ไม่ได้"
EMOJI = "👩\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 👍🏽 🇩🇪🇫🇷 ☺\ufe0f ©™ 😀😀😀"
ASIA = "中文字符\uff0c没有空格。日本語のテキスト、カタカナ。한국어 텍스트"
SCRIPTS = f"{ASIA} Привет, мир! שלום עולם مرحبا Ελληνικά"
CONTROLS = (
    "\x00 \x01\x02 \x07\x08 \x0b\x0c \x1b[31m \x7f \x85 \u200b\u200e\ufeff \u2028\u2029 \ufffd"
)
QUOTES = "«quoted» “curly” \u2018single\u2019 \"double\" ''' `back` \u00b4"
PUNCTUATION = f"... ?! -- ---- {QUOTES} (a)[b]{{c}} #$%^&*+=<>|~\\/ :// @_@ ;-) ¿¡"
JSON = '{"intent":"BookRestaurant","slots":{"city":"New York","party_size":4,"x":null}}, [1.5,-2]'
CODE = "def f(x):\n\treturn x**2  # square\n\n\nfor (int i=0;i<10;++i) {\r\n    a[i] += 1;\r\n}\n"
URLS = "https://example.org/a/b.html?q=1&r=%20#top user.name+tag@example.com C:\\Users\\x ~/.cache"
SPACES = (" ", "  ", "   ", "\t", "\n", "\n\n\n", "\r\n", " \n ", "\u00a0", "\u3000", "\u2003")

STRINGS: tuple[str, ...] = (
    "",
    *("a", "A", "0", ".", "_", "\x00", "é", "中", "😀"),
    *SPACES,
    *(f"{space}word{space}word{space}" for space in SPACES),
    *("  leading", "trailing  ", "in   side", "tab\tand\nnewline", "a \n b\n \nc", "x\n\n  y"),
    *(LETTERS, DIGITS, MARKS, EMOJI, SCRIPTS, CONTROLS, PUNCTUATION, JSON, CODE, URLS),
    *("1" * 40, "ab" * 200, "!" * 70, " " * 130, "\n" * 33, "é" * 65, "中" * 50, "😀" * 30),
    " ".join((LETTERS, DIGITS, JSON, SCRIPTS, EMOJI)) * 30,  # very long
)


def with_special(strings: tuple[str, ...], special: tuple[str, ...]) -> tuple[str, ...]:
    """Return the strings and such that hold special tokens: whole, cut, doubled and glued."""
    held = [
        text
        for token in special
        for text in (
            *(token, token * 3, f"a{token}b", f" {token} ", f"\n{token}\n", f"{token} 12 中"),
            *(token[:-1], token[1:], token[:-1] + token, token.upper()),
        )
    ]
    return (*strings, *held, "x".join(special))
