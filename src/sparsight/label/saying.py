"""What a feature says, and what tells its texts from others: words that its direction makes likelier and that do follow
in the rest of the turn, and words that its documents have and others do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsight.label.candidates import Candidate
from sparsight.label.typing import Profile

FEW = 5  # words that are named
LEAST = 2  # words that must be made likelier and follow, for a feature to be one that says something
FOLLOWS = 0.4  # of its weight where one of them follows, at least
PREFIX = 3  # characters of a token, from which on it stands for the words that begin with it
LIFTED = 3  # words that are named of those that its direction makes likelier
MUTE = ("punctuation", "line break", "space", "special")  # looks of tokens that mean nothing alone
USUAL = 0.15  # of random places that a word is said before: a word of many texts
FUNCTION = 0.5  # the same: a word of nearly all texts
COVERED = 0.5  # of a token's places where a feature fires, for the token alone to say what it fires on

FUNCTION_WORDS = frozenset(
    str.split(
        """a about after again all also am an and any are aren't as at be been before being but by can could did
        do does doesn't doing don't down each else ever every few for from get go going got had has have having he he's
        her here hers him his how i i'd i'll i'm i've if in into is isn't it it's its itself just know let let's like
        made make makes me more most much my myself no nor not now of off oh on one ones only or other our ours
        out over own per really s said same say says she she's should so some something such t than that that's the
        their theirs them then there there's these they they're this those through to too under until up us very
        was wasn't we we're went were what what's when where which while who whom why will with without would
        you you'd you'll you're you've your yours"""
    )
)


def says(chosen: Candidate, facts: Profile) -> list[str]:
    """The words that it says, most telling first; none where it is not that sort of feature."""
    found = [word for word in ranked(chosen.telling.get("later", {}))
             if word not in FUNCTION_WORDS and is_likelier(word, facts.lens)]  # fmt: skip
    follows = sum(share for _, coming, share in facts.said if not coming.isdisjoint(found))
    return apart(found, FEW) if len(apart(found, LEAST)) >= LEAST and follows >= FOLLOWS else []


def lifted(above: Sequence[tuple[str, float]]) -> list[str]:
    """Of the tokens that a direction makes likelier, those that are words by themselves."""
    words = dict.fromkeys(piece.strip().casefold() for piece, _ in above if piece[:1].isspace() and piece[1:].isalpha())
    return apart([word for word in words if len(word) > PREFIX and word not in FUNCTION_WORDS], LIFTED)


def is_likelier(word: str, lens: Sequence[str]) -> bool:
    """Whether it is, or begins with, a token that the feature's direction makes likelier."""
    return any(word == token or (len(token) >= PREFIX and word.startswith(token)) for token in lens)


def topic(
    chosen: Candidate, facts: Profile, usual: Mapping[str, float], without: Sequence[str] = (), number: int = FEW
) -> list[str]:
    """Words that tell its texts from others, of those that the rule weighs. Function words only where there are no
    others. without: words that are said already."""
    worth: dict[str, float] = {}
    for name in ("words", "later"):
        for word, value in chosen.telling.get(name, {}).items() if name in chosen.parts else ():
            worth[word] = max(value * (0.5 if usual.get(word, 0.0) >= USUAL else 1.0), worth.get(word, 0.0))
    spoken = [one.word for one in facts.tokens if one.share > 0.2] if len(chosen.parts) > 1 else []
    spoken += [word for one in facts.tokens[:1] for word, share in one.before if share > 0.2]
    content = {word: value for word, value in worth.items() if word not in FUNCTION_WORDS}
    return apart(ranked(content if len(content) > 1 else worth), number, [*without, *spoken])


def is_named(words: Sequence[str]) -> bool:
    """Whether some words say what texts are about: two of them are no function words."""
    return sum(word not in FUNCTION_WORDS for word in words) >= LEAST


def is_manner(words: Sequence[str], facts: Profile, usual: Mapping[str, float]) -> bool:
    """Whether such words are a way to speak, rather than what is spoken of: words of all texts, or those that the
    feature itself makes likelier."""
    spoken = [word for word in words
              if word in FUNCTION_WORDS or usual.get(word, 0.0) >= USUAL or is_likelier(word, facts.lens)]  # fmt: skip
    return 2 * len(spoken) >= len(words)


def is_mute(facts: Profile, covers: Mapping[str, float], usual: Mapping[str, float]) -> bool:
    """Whether its tokens say nothing of it: they stand in all texts, and most of their places leave it silent."""
    plain = [one for one in facts.tokens if one.shape in MUTE or usual.get(one.word, 0.0) >= FUNCTION]
    covered = [(one.share, covers[one.key]) for one in plain if one.key in covers]
    weight = sum(share for share, _ in covered)
    return weight >= 0.5 and sum(share * cover for share, cover in covered) < COVERED * weight


def ranked(worth: Mapping[str, float]) -> list[str]:
    return sorted(worth, key=lambda word: (-worth[word], word))


def apart(words: Sequence[str], number: int, taken: Sequence[str] = ()) -> list[str]:
    """The first so many that are no forms of each other, nor of what is taken."""
    out: list[str] = []
    for word in words:
        if len(out) == number:
            break
        if not any(_alike(word, other) for other in (*taken, *out)):
            out.append(word)
    return out


def _alike(a: str, b: str) -> bool:
    short, long = sorted((a, b), key=len)
    return long.startswith(short) and (short == long or (len(short) >= PREFIX and len(long) - len(short) <= 3))
