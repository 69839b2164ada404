"""The key-format lint and the negative control."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotator.core.keyformat import MAX_FLAWS, Flaw, corrupt, lint

GOOD = [
    pytest.param("glsa_HOruNAb7SOiCdshU9algkrq7FDsNSLAa_55e2f8be", id="Grafana"),
    pytest.param("QnbSxjNDyzkNmg.atlasv1.yXJkPgmV8Rb2cAo", id="HCP Terraform"),
    pytest.param("tok_1a2b3c4d5e.Zm9vYmFyYmF6cXV4", id="Auth0"),
    pytest.param("eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.c2ln-_c2ln", id="a JWT"),
    pytest.param("c2VjcmV0LXBhZGRlZA==", id="base64 with padding"),
    pytest.param("abc123:def456", id="Tableau's colon"),
    pytest.param("00deadbeefcafe", id="hex"),
    pytest.param("bearertoken123", id="the word bearer without a blank is part of the key"),
]

BAD = [
    pytest.param("", (Flaw(0, "the key is empty"),), id="empty"),
    pytest.param(" abc", (Flaw(0, "leading whitespace", "U+0020"),), id="leading blank"),
    pytest.param("abc ", (Flaw(3, "trailing whitespace", "U+0020"),), id="trailing blank"),
    pytest.param("abc\n", (Flaw(3, "trailing whitespace", "U+000A"),), id="trailing line end"),
    pytest.param(
        "abc\r\n",
        (Flaw(3, "trailing whitespace", "U+000D"), Flaw(4, "trailing whitespace", "U+000A")),
        id="Windows line end: both characters",
    ),
    pytest.param("ab\tc", (Flaw(2, "inner whitespace", "U+0009"),), id="tab inside"),
    pytest.param("ab\u2003c", (Flaw(2, "inner whitespace", "U+2003"),), id="em space"),
    pytest.param("a\u00a0b", (Flaw(1, "a no-break space", "U+00A0"),), id="no-break space inside"),
    pytest.param("ab\u00a0", (Flaw(2, "a no-break space", "U+00A0"),), id="no-break space at the end"),
    pytest.param("a\x00b", (Flaw(1, "a control character", "U+0000"),), id="NUL"),
    pytest.param("a\x1bb", (Flaw(1, "a control character", "U+001B"),), id="escape"),
    pytest.param("a\x9fb", (Flaw(1, "a control character", "U+009F"),), id="C1 control"),
    pytest.param("a\u200bb", (Flaw(1, "a zero-width character", "U+200B"),), id="zero-width space"),
    pytest.param("a\u200cb", (Flaw(1, "a zero-width character", "U+200C"),), id="zero-width non-joiner"),
    pytest.param("a\u200db", (Flaw(1, "a zero-width character", "U+200D"),), id="zero-width joiner"),
    pytest.param("a\u2060b", (Flaw(1, "a zero-width character", "U+2060"),), id="word joiner"),
    pytest.param("\ufeffab", (Flaw(0, "a byte order mark", "U+FEFF"),), id="byte order mark"),
    pytest.param("a\u202eb", (Flaw(1, "a text direction mark", "U+202E"),), id="right-to-left override"),
    pytest.param("a\u200fb", (Flaw(1, "a text direction mark", "U+200F"),), id="right-to-left mark"),
    pytest.param("a\u2069b", (Flaw(1, "a text direction mark", "U+2069"),), id="pop directional isolate"),
    pytest.param("a\u00adb", (Flaw(1, "an invisible character", "U+00AD"),), id="soft hyphen"),
    pytest.param("a\U000e0041b", (Flaw(1, "an invisible character", "U+E0041"),), id="tag character"),
    pytest.param(
        "\u201cab\u201d",
        (Flaw(0, "a typographic quote", "U+201C"), Flaw(3, "a typographic quote", "U+201D")),
        id="curly quotes around",
    ),
    pytest.param("ab\u2019c", (Flaw(2, "a typographic quote", "U+2019"),), id="curly apostrophe"),
    pytest.param("a\u00e9b", (Flaw(1, "a non-ASCII character"),), id="é, its code point unsaid: it may be the key's"),
    pytest.param("\u0430bc", (Flaw(0, "a non-ASCII character"),), id="Cyrillic а that looks like a"),
    pytest.param("a\u2014b", (Flaw(1, "a non-ASCII character"),), id="em dash"),
    pytest.param("a\ud800b", (Flaw(1, "half of a broken character", "U+D800"),), id="lone surrogate"),
    pytest.param("a!b", (Flaw(1, "a character that bearer tokens don't have"),), id="exclamation mark, unsaid"),
    pytest.param('"ab"', tuple(Flaw(p, "a character that bearer tokens don't have") for p in (0, 3)), id="quoted"),
    pytest.param(
        "Bearer abc",
        (Flaw(0, 'the scheme "Bearer" stands in front of the key; store the bare key'),),
        id="Bearer in front",
    ),
    pytest.param(
        "bEARER abc",
        (Flaw(0, 'the scheme "Bearer" stands in front of the key; store the bare key'),),
        id="bearer in any case",
    ),
    pytest.param(
        " Bearer abc",
        (
            Flaw(0, "leading whitespace", "U+0020"),
            Flaw(1, 'the scheme "Bearer" stands in front of the key; store the bare key'),
        ),
        id="a blank, then Bearer: both",
    ),
    pytest.param(
        "Token abc",
        (Flaw(0, 'the scheme "Token" stands in front of the key; store the bare key'),),
        id="Token in front",
    ),
    pytest.param(
        "Token token=abc",
        (Flaw(0, 'the scheme "Token token=" stands in front of the key; store the bare key'),),
        id="PagerDuty's form in front",
    ),
    pytest.param(
        "ssws 00abc",
        (Flaw(0, 'the scheme "SSWS" stands in front of the key; store the bare key'),),
        id="Okta's scheme in front",
    ),
    pytest.param(
        "Bearer  abc",
        (
            Flaw(0, 'the scheme "Bearer" stands in front of the key; store the bare key'),
            Flaw(7, "inner whitespace", "U+0020"),
        ),
        id="Bearer and two blanks",
    ),
]

clean_keys = st.text(alphabet=string.ascii_letters + string.digits + "-._~+/=:", min_size=3, max_size=200)


@pytest.mark.parametrize("key", GOOD)
def test_keys_that_targets_issue_are_fit(key: str) -> None:
    assert lint(key) == ()


@pytest.mark.parametrize(("key", "flaws"), BAD)
def test_what_people_paste_along_is_named_with_its_position(key: str, flaws: tuple[Flaw, ...]) -> None:
    assert lint(key) == flaws


def test_a_target_may_use_more_characters() -> None:
    assert lint("a!b") != ()
    assert lint("a!b", extra=frozenset("!")) == ()


def test_a_pasted_page_gives_the_first_flaws_only() -> None:
    assert len(lint("<p>a b</p>" * 5000)) == MAX_FLAWS


def test_a_flaw_reads_as_a_sentence_without_the_key() -> None:
    assert [str(flaw) for flaw in lint("s3cret\u00a0")] == ["a no-break space at position 6 (U+00A0)"]
    assert [str(flaw) for flaw in lint("s3c!ret")] == ["a character that bearer tokens don't have at position 3"]


@given(st.text())
def test_no_printable_character_of_a_key_is_told(key: str) -> None:
    told = {flaw.code_point for flaw in lint(key)} - {None}
    letters = {f"U+{ord(c):04X}" for c in key if c.isalnum() or c in string.punctuation}
    assert not told & letters


@pytest.mark.parametrize(
    "key",
    [
        *GOOD,
        pytest.param("a", id="one character"),
        pytest.param("aA", id="two characters"),
        pytest.param("aaaaaaaaaaaaaaaa", id="one letter again and again"),
        pytest.param("0000", id="zeros"),
        pytest.param("----", id="no letter or digit"),
        pytest.param("abc=====", id="mostly padding"),
    ],
)
def test_a_corrupted_key_is_another_key(key: str) -> None:
    assert corrupt(key) != key


@given(clean_keys)
def test_a_corrupted_key_differs_by_more_than_case_or_its_end(key: str) -> None:
    wrong = corrupt(key)
    assert len(wrong) == len(key)
    assert lint(wrong) == ()
    assert wrong.casefold() != key.casefold()
    assert wrong[:-1] != key[:-1]
    assert wrong.rstrip("=") != key.rstrip("=")


@given(st.text(alphabet="0123456789abcdef", min_size=3, max_size=64))
def test_a_corrupted_hex_key_is_hex(key: str) -> None:
    assert set(corrupt(key)) <= set("0123456789abcdef")


def test_a_key_keeps_its_prefix_when_corrupted() -> None:
    assert corrupt("glsa_HOruNAb7SOiCdshU9algkrq7FDsNSLAa_55e2f8be").startswith("glsa_")


def test_an_empty_key_has_no_corrupted_form() -> None:
    with pytest.raises(ValueError, match="empty"):
        corrupt("")
