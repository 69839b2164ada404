"""Is a key fit to be stored, sent in a header and typed into a form? And a surely wrong one beside it.

`lint` finds what people paste along with a key: blanks, line ends, invisible characters, curly quotes, a scheme in
front. It never trims (a silently changed key is another key) and never quotes the key (I5): a flaw names a position and
a kind, and a code point only where the character is no part of any key. `corrupt` makes the negative control.
"""

from __future__ import annotations

import string
import unicodedata
from dataclasses import dataclass

MAX_FLAWS = 20  # a pasted web page has thousands; the first ones say enough

# RFC 6750 §2.1, the b64token characters, plus ':' (Tableau's SCIM secrets contain it). '=' stands at the end there, but
# set-by-hand keys carry it anywhere.
_ALLOWED = frozenset(string.ascii_letters + string.digits + "-._~+/=:")
_PUNCTUATION = "-_~.+/"

# The longest first. A key stored with its scheme is sent with two of them ("Bearer Bearer …").
_SCHEMES = ("Token token=", "Bearer ", "Token ", "SSWS ")

_ZERO_WIDTH = frozenset("\u200b\u200c\u200d\u2060\u180e")
_BOM = "\ufeff"
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong at one place of a key. `position` counts characters from 0; never the key's text."""

    position: int
    what: str
    code_point: str | None = None  # "U+00A0"; None where the character may be part of the key's own text

    def __str__(self) -> str:
        text = f"{self.what} at position {self.position}"
        return f"{text} ({self.code_point})" if self.code_point else text


def lint(key: str, extra: frozenset[str] = frozenset()) -> tuple[Flaw, ...]:
    """The first `MAX_FLAWS` flaws, in order; empty when the key is fit. `extra`: characters this target also uses."""
    if not key:
        return (Flaw(0, "the key is empty"),)
    flaws: list[Flaw] = []
    begin = 0
    # After leading blanks too: " Bearer x" is a scheme, not only a blank.
    lead = len(key) - len(key.lstrip())
    for scheme in _SCHEMES:
        if key[lead : lead + len(scheme)].casefold() == scheme.casefold():
            flaws.append(Flaw(lead, f'the scheme "{scheme.rstrip()}" stands in front of the key; store the bare key'))
            begin = lead + len(scheme)
            break
    body_end = len(key.rstrip())
    for position, character in enumerate(key):
        if lead <= position < begin or character in _ALLOWED or character in extra:
            continue
        flaws.append(_flaw(position, character, leading=position < lead, trailing=position >= body_end))
    return tuple(sorted(flaws, key=lambda flaw: flaw.position)[:MAX_FLAWS])


def corrupt(key: str) -> str:
    """A key that is surely another one: the negative control of a proof.

    Same length, same kinds of characters at the same places. Characters in the middle change, never only letter case
    (some targets ignore it) and never only the end (base64's last character holds spare bits, and some servers strip).
    A key's prefix, by which targets route it, stays.
    """
    if not key:
        raise ValueError("an empty key has no corrupted form")
    inner = range(len(key) // 4, max(len(key) - 2, 0)) or range(len(key))
    places = [place for place in inner if key[place].isascii() and key[place].isalnum()]
    places = places or [place for place in range(len(key) - 1) if key[place].isascii() and key[place].isalnum()] or [0]
    middle = len(places) // 2
    changed = list(key)
    for place in places[max(middle - 4, 0) : middle + 4]:
        changed[place] = _other(key[place], key)
    return "".join(changed)


def _flaw(position: int, character: str, *, leading: bool, trailing: bool) -> Flaw:
    code_point = f"U+{ord(character):04X}"
    category = unicodedata.category(character)
    if character == "\u00a0":
        return Flaw(position, "a no-break space", code_point)
    if character.isspace():
        where = "leading" if leading else "trailing" if trailing else "inner"
        return Flaw(position, f"{where} whitespace", code_point)
    if character in _ZERO_WIDTH:
        return Flaw(position, "a zero-width character", code_point)
    if character == _BOM:
        return Flaw(position, "a byte order mark", code_point)
    if character in _BIDI:
        return Flaw(position, "a text direction mark", code_point)
    if category == "Cc":
        return Flaw(position, "a control character", code_point)
    if category in {"Pi", "Pf"} or character in "\u201a\u201e":
        return Flaw(position, "a typographic quote", code_point)
    if category == "Cf":
        return Flaw(position, "an invisible character", code_point)
    if category == "Cs":
        return Flaw(position, "half of a broken character", code_point)
    if not character.isascii():
        return Flaw(position, "a non-ASCII character")
    return Flaw(position, "a character that bearer tokens don't have")


def _other(character: str, key: str) -> str:
    """Another character of the same class, taken from the key itself where it can be (a hex key stays hex)."""
    for alphabet in (string.digits, string.ascii_lowercase, string.ascii_uppercase):
        if character in alphabet:
            own = [other for other in alphabet if other in key]
            if len(own) == 1:
                own = list(alphabet[:6])  # a-f, so that hex stays hex; digits 0-5
            later = [other for other in own if other > character]
            return next(iter(later), None) or next(other for other in own if other != character)
    return next(other for other in _PUNCTUATION if other != character)
