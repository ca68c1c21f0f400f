"""A short sentence about a feature, out of the parts of the rule that tells where it fires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsight.label.candidates import Candidate
from sparsight.label.evidence import Background, Evidence, Window
from sparsight.label.saying import FEW, MUTE, is_manner, is_mute, is_named, lifted, says, topic
from sparsight.label.typing import Profile, Spoken
from sparsight.label.words import readable

VAGUE = 0.35  # of its weight on a few words: naming them says too little
TELLS = 0.5  # of the way from a role's share of all tokens to all of them: then a role is worth a word
ONE = 0.7  # of its weight on one token: that token's feature
MOST = 0.75  # of its weight on a few words: those words' feature
SCATTERED = 0.4  # of its weight on a few words: where what the text is about tells too, that alone is said
TOKENS, TEXTS, COMING = {"ngrams", "folded"}, {"words", "later"}, {"next", "later"}  # parts
MARKS = {
    ".": "full stops", ",": "commas", "?": "question marks", "!": "exclamation marks", ":": "colons", ";": "semicolons",
    '"': "quotation marks", "'": "apostrophes", "-": "hyphens", "(": "opening brackets", ")": "closing brackets",
}  # fmt: skip
ENDINGS = ("", "s", "es", "d", "ed", "ing", "er", "ers", "y", "ly", "n", "en")
PLAIN = ("lower case", "space")  # looks that tell nothing
SHAPES = {
    "number": "numbers", "CAPITALS": "words in capitals", "Capitalised": "capitalised words", "punctuation":
    "punctuation", "line break": "line breaks", "space": "spaces", "special": "template tokens",
}  # fmt: skip
TURNS = {"assistant": "the assistant's reply", "user": "what the user says", "system": "the system message",
         "tool": "what a tool says", "text": "plain text", "template": "the chat template"}  # fmt: skip


def sentence(evidence: Evidence, facts: Profile, chosen: Candidate, background: Background) -> tuple[str, str]:
    """(what it fires on, its type). Empty where these parts say nothing of it."""
    parts = set(chosen.parts)
    mute = is_mute(facts, evidence.covers, background.words)
    about = topic(chosen, facts, background.words)
    after = strongest(chosen.table("next"), facts.next)
    speaks = bool(parts & COMING) and (mute or not parts & TOKENS or _scattered(facts))
    scattered = _scattered(facts) and parts & TEXTS and about
    if speaks and (words := says(chosen, facts)):
        return saying(words, evidence, facts, chosen, background), "output"
    if parts & TOKENS and not scattered:
        said, kind = on_tokens(facts, "ngrams" in parts)
        if not said and "places" in parts and (where := turn(facts, evidence)):
            said, kind = where
        elif not said and about:
            return f"text {_of(about, facts, background)}", "context"
    elif "shapes" in parts and (looks := on_shapes(facts)):
        said, kind = looks, "format"
    elif "next" in parts and after:
        said, kind = f"says {listed([facts.spelled.get(t, t) for t in after])} next", "output"
        if few := [one.word for one in facts.tokens[:3] if one.share >= 0.08]:
            said += f", after {listed(few)}"
    elif "places" in parts and (where := turn(facts, evidence)):
        said, kind = where
    elif "languages" in parts and facts.languages[0][0]:
        said, kind = f"{facts.languages[0][0]} text", "language"
    elif about:
        return f"text {_of(about, facts, background)}", "context"
    else:
        return "", "unclear"
    if not said:
        return said, kind
    told = mute and bool(about or "languages" in parts)
    if "places" in parts and kind not in ("role", "position") and (where := turn(facts, evidence)):
        said += f" {'at' if where[1] == 'position' else 'in'} {where[0]}"
        told |= mute
    if "next" in parts and kind != "output" and after and not (parts & TEXTS and is_named(about)):
        said += f", before {listed([facts.spelled.get(text, text) for text in after])}"
        told |= mute
    if parts & TEXTS and about:
        said += f", in text {_of(about[:4], facts, background)}"
    if mute and not told and kind not in ("role", "position", "output", "phrase"):
        return "", "unclear"
    if (mute or kind in ("role", "position")) and kind != "output" and not is_named(about):
        said += f"; makes {listed(more)} likelier" if (more := lifted(evidence.above)) else ""
    return said, kind


def saying(words: Sequence[str], evidence: Evidence, facts: Profile, chosen: Candidate, background: Background) -> str:
    """Of a feature that says something: what, where, and in what texts."""
    said = f"says {', '.join(f'“{word}”' for word in words)}"
    if where := turn(facts, evidence):
        said += f", {'at' if where[1] == 'position' else 'in'} {where[0]}"
    more = topic(chosen, facts, background.words, words, max(FEW - len(words), 2))
    return f"{said}; in text with {', '.join(more)}" if more else said


def named_share(chosen: Candidate, evidence: Evidence, facts: Profile, background: Background) -> float:
    """Of what a feature fires on, the share that a sentence about these parts names."""
    parts, shares = set(chosen.parts), [0.0]
    if parts & TOKENS:
        shares.append(sum(one.share for one in facts.tokens[:FEW]))
    if parts & TEXTS:
        few = topic(chosen, facts, background.words)
        shares.append(sum(share for had, coming, share in facts.said
                          if not (had | coming if "later" in parts else had).isdisjoint(few)))  # fmt: skip
    if "next" in parts:
        said = strongest(chosen.table("next"), facts.next)
        shares.append(sum(share for name, share in facts.next if name in said))
    if "places" in parts and turn(facts, evidence):
        role = facts.places[0][0].partition(" ")[0]
        shares.append(sum(share for place, share in facts.places if place.partition(" ")[0] == role))
    if "shapes" in parts:
        shares.append(sum(share for _, share in _looks(facts)))
    if "languages" in parts:
        shares.append(facts.languages[0][1])
    return max(shares)


def _scattered(facts: Profile) -> bool:
    return sum(one.share for one in facts.tokens[:FEW]) < SCATTERED


def _of(words: Sequence[str], facts: Profile, background: Background) -> str:
    return f"{'that says' if is_manner(words, facts, background.words) else 'about'} {', '.join(words)}"


def on_tokens(facts: Profile, with_context: bool) -> tuple[str, str]:
    """Of a feature that a token, or a few, tell."""
    first = facts.tokens[0]
    if first.share >= ONE:
        return _in_phrase(first) if with_context else (named(first), "single token")
    few, covered = [], 0.0
    for one in facts.tokens[:FEW]:
        if covered >= MOST or (len(few) > 1 and one.share < 0.03):
            break
        few.append(one)
        covered += one.share
    words = list(dict.fromkeys(one.word for one in few))
    if len(words) == 1:
        return named(first), "single token"
    if stem := _stem(words):
        return f"forms of “{stem}”: {', '.join(words)}", "word family"
    looks = {one.shape for one in few}
    if len(looks) == 1 and few[0].shape in ("punctuation", "number", "special"):
        return f"{SHAPES[few[0].shape]}: {' '.join(readable(word) for word in words)}", "format"
    if facts.shapes[0][0] == "number" and facts.shapes[0][1] >= MOST:
        return "numbers", "format"
    if covered >= MOST:
        return listed(words), "words"
    telling = [one.word for one in few if one.shape not in MUTE]
    if covered < VAGUE or 2 * len(telling) < len(few):
        return "", "unclear"
    return f"words such as {', '.join(readable(word) for word in dict.fromkeys(telling))}", "words"


def named(one: Spoken) -> str:
    """A token by a name that a reader knows."""
    if one.word in MARKS:
        return MARKS[one.word]
    if one.shape in ("line break", "space"):
        return "line breaks" if one.shape == "line break" else "spaces" if len(one.word) > 1 else "a space"
    if one.shape == "special":
        return f"the template's {one.word}"
    if one.part:
        return f"“{readable(one.word)}” as in {listed([word for word, _ in one.words[:3]])}"
    return f"the {'word' if one.word[:1].isalpha() else 'token'} “{readable(one.word)}”"


def on_shapes(facts: Profile) -> str:
    """Of a feature that what tokens look like tells."""
    return " and ".join(SHAPES.get(name, f"{name} script") for name, _ in _looks(facts))


def turn(facts: Profile, evidence: Evidence) -> tuple[str, str] | None:
    """Whose turn it fires in, and whether at its start; None where all turns are alike to it."""
    by_role: dict[str, float] = {}
    start: dict[str, float] = {}
    for place, share in facts.places:
        role, _, step = place.partition(" ")
        by_role[role] = by_role.get(role, 0.0) + share
        start[role] = start.get(role, 0.0) + (share if step not in ("later", "") else 0.0)
    role = min(by_role, key=lambda name: (-by_role[name], name))
    if role == "template" and facts.opens and facts.opens[0][1] >= TELLS * by_role[role] and facts.opens[0][0]:
        return f"the start of {TURNS.get(facts.opens[0][0], facts.opens[0][0])}", "position"
    said = TURNS.get(role, role)
    if start[role] >= 0.6 * by_role[role]:
        first = dict(facts.places).get(f"{role} 0", 0.0) >= 0.6 * by_role[role]
        return f"the {'first token' if first else 'start'} of {said}", "position"
    usual = evidence.roles.get(role, 0.0)
    return (said, "role") if by_role[role] - usual >= TELLS * (1 - usual) else None


def strongest(weights: Mapping[str, float], seen: Sequence[tuple[str, float]]) -> list[str]:
    """Of what was seen, what weighs for it, most often seen first; none where that is little of all that was seen."""
    found = [(name, share) for name, share in seen if weights.get(name, 0.0) > 0 and share >= 0.05][:3]
    return [name for name, _ in found] if sum(share for _, share in found) >= VAGUE else []


def listed(words: Sequence[str]) -> str:
    quoted = [f"“{readable(word)}”" for word in words]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}" if len(quoted) > 1 else quoted[0] if quoted else "a few tokens"


def snippet(window: Window, before: int = 8, after: int = 3) -> str:
    """A few words around the focus, which stands in brackets."""
    i = window.focus
    left, right = "".join(window.pieces[max(i - before, 0) : i]), "".join(window.pieces[i + 1 : i + 1 + after])
    return " ".join(f"{left} [{readable(window.pieces[i])}]{right}".split())


def _looks(facts: Profile) -> list[tuple[str, float]]:
    """The two most frequent looks that tell something; none where most tokens have a plain one."""
    found = [(name, share) for name, share in facts.shapes if share >= 0.15 and name not in PLAIN][:2]
    return found if sum(share for _, share in found) >= 0.5 else []


def _in_phrase(one: Spoken) -> tuple[str, str]:
    """The token with what stands before it, where that is told by a word or three; else the token."""
    (word, share), *more = one.before or [("", 0.0)]
    if word and share >= 0.6 and word[-1:].isalnum() and one.word[:1].isalnum():
        return f"the phrase “{readable(word)} {readable(one.word)}”", "phrase"
    few = [text for text, each in [(word, share), *more][:3] if each >= 0.1 and text.strip()]
    if few and sum(each for text, each in one.before if text in few) >= 0.6:
        return f"{named(one)} after {listed(few)}", "phrase"
    return named(one), "single token"


def _stem(words: Sequence[str]) -> str | None:
    """What several words are forms of: the shortest, or what most of each begins with alike."""
    least, longest = min(words, key=len), max(map(len, words))
    if not all(word.isalpha() for word in words):
        return None
    if len(least) > 2 and all(
        w.startswith(least) and w[len(least) :].removeprefix(least[-1]) in ENDINGS for w in words
    ):
        return least
    n = next((i for i, c in enumerate(least) if any(w[i] != c for w in words)), len(least))
    return least[:n] if n >= 4 and n >= 0.7 * longest else None
