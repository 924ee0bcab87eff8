"""Text for people."""

import pytest

from latentq.system.text import escaped, one_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("two\n  lines\r\n", "two lines"),
        ("two  spaces stay", "two  spaces stay"),
        ("a\tb", "a\\tb"),
        ("\x1b]0;title\x07red", "\\x1b]0;title\\x07red"),
        ("c1 \x9b31m", "c1 \\x9b31m"),
        ("evil\u202egnp.exe", "evil\\u202egnp.exe"),
        ("line\u2028separator", "line\\u2028separator"),
        ("not UTF-8: \udce9", "not UTF-8: \\udce9"),
        ("Grüße 日本 👩\u200d🎨", "Grüße 日本 👩\u200d🎨"),
        (ValueError("a\nb"), "a b"),
        (MemoryError(), "MemoryError"),
        ("", ""),
    ],
)
def test_one_line_is_one_line_and_printable(text: object, expected: str) -> None:
    assert one_line(text) == expected


def test_escaped_keeps_a_names_line_breaks_visible() -> None:
    assert escaped("a\nb\r\tc.png") == "a\\nb\\r\\tc.png"


def test_no_control_character_is_left() -> None:
    every = "".join(map(chr, range(0x3000)))
    assert not [character for character in escaped(every) if not character.isprintable() and ord(character) < 0xA0]
    escaped(every + "\ud800\udfff").encode()
