"""Rewrites plain English replies in twelve voices, by simple and local rules.

Most voices change words one for one (`Swaps`) and then stand marks where a stretch of the reply has none: an
opener before a sentence, an adjective after "the", an interjection at a joint of the sentence, a tag at its
end. Everything that is drawn comes from the caller's random.Random.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

import marks


def words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


JOINTS = words("""and but or because so that which who when where while if at in on for with from to about after before
    under over into through during without until is are was were will has can would fer wif fow fur an'""")
LOOSE = words("""the a an of and or but to in on at for with from by as is are be was were am my your our his her its
    their this that very so not no will would can could should may do does did have has had i you we they he she it
    those these any some more most than about there which who if when where what how like want need going able up
    please ye me yer o' an' fer thou thy yore u ur r mew mewr da dis dat fow wif fur hast art sir human unit ol' frm
    abt w""")
DETERMINERS = words("the a an your my our")
NO_NOUN = words("""same first second third next last following lot few little bit most best only one other two three
    four five six very more least way own whole rest end and of to in as right kind couple while past total day name
    time great good other's following: lovely nice certain favorite favourite""")
LOWERED = words("""the a an you your it its is are do does did would will can could should what when where which who
    how why there this that these they we he she here have has had if in on at for with my our their his her and but so
    okay yes no sure please thanks thank today tomorrow alright maybe sorry me also one both anything everything sounds
    looks may be those next last top more many much most every thou art hast dost wouldst couldst canst tis twas aye ye
    yer dat dis da mew mewr verily affirmative greetings all some any not just let great good well from as""")
LINKS = words("of and the for in with at to on")
ABBREVIATED = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Jr|vs|[A-Z])\.|^\d+\.)$")
STARTS = re.compile(r"(?:^[\"']?|[.!?:]['\")]*\s|[\n*]|- )\s*$")
LISTED = re.compile(r"^(?:\d+[.)]|[-*])\s+")
ENDING = re.compile(r"([.!?]+[\"']?|)$")


def deck(listed: str, rng: random.Random) -> Iterator[str]:
    """Draws from a list divided by | signs, and repeats nothing before all was drawn."""
    items = listed.split("|")
    while True:
        yield from rng.sample(items, len(items))


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return re.sub(r"^([\"'(]*)([a-z])", lambda m: m[1] + m[2].upper(), text)


def lowered(text: str) -> str | None:
    """The text with its first letter in lower case; None if its first word may be a name."""
    first = re.match(r"'?[A-Za-z]+", text)
    if first and first[0].lower().lstrip("'") in LOWERED:
        return first[0].lower() + text[first.end() :]
    return text if first and first[0] == "I" else None


class Swaps:
    """Words and phrases that take the place of others: `old=new` divided by spaces, _ for a space.

    A ^ before the new word keeps the rule to the start of a sentence.
    """

    def __init__(self, listed: str) -> None:
        pairs = (pair.replace("_", " ").split("=") for pair in listed.split())
        self.table = {old.lower(): new for old, new in pairs}
        olds = sorted(map(re.escape, self.table), key=len, reverse=True)
        self.pattern = re.compile(rf"(?<![\w'@-])(?:{'|'.join(olds)})(?![\w'@-])", re.IGNORECASE)

    def __call__(self, text: str) -> str:
        return self.pattern.sub(self.one, text)

    def one(self, match: re.Match[str]) -> str:
        old, text = match[0], match.string
        new, before, after = self.table[old.lower()], text[: match.start()], text[match.end() :]
        begins = bool(STARTS.search(before))
        named = old[0].isupper() and re.match(r"[A-Za-z]+", old)[0] not in ("I", "OK")
        if not begins and (named or new[0] == "^"):
            return old  # part of a name or a title, or a rule for the start only
        new = new.lstrip("^")
        if old in LINKS and re.search(r"[A-Z][\w']* $", before) and re.match(r" [A-Z]\w", after):
            return old  # "Bed and Breakfast"
        return capital(new) if begins and old[0].isupper() else new


def sentences(line: str) -> list[str]:
    """The sentences of a line."""
    found: list[str] = []
    for piece in re.split(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z0-9*])|(?<=[.!?][\"')])\s+(?=[A-Z])", line):
        if found and ABBREVIATED.search(found[-1]):
            found[-1] += " " + piece
        else:
            found.append(piece)
    return found


class Filler:
    """Stands marks of one voice where a reply has none for some words."""

    def __init__(self, manner: marks.Manner, rng: random.Random) -> None:
        self.manner, self.rng = manner, rng
        self.openers, self.tags = deck(manner.openers, rng), deck(manner.tags, rng)
        self.inserts, self.adjectives = deck(manner.inserts, rng), deck(manner.adjectives, rng)
        self.gap = 9  # words since the last mark

    def reply(self, text: str) -> str:
        lines = text.split("\n")
        return "\n".join(self.line(line, i == len(lines) - 1) for i, line in enumerate(lines))

    def line(self, line: str, last: bool) -> str:
        line = " ".join(line.split())
        if not line or (self.gap < 9 and not re.search(r"[A-Za-z]", line)):
            return line
        head = LISTED.match(line)
        start = head.end() if head else 0
        parts = sentences(line[start:])
        done = [self.sentence(s, last and i == len(parts) - 1) for i, s in enumerate(parts)]
        return line[:start] + " ".join(done)

    def sentence(self, sentence: str, last: bool) -> str:
        words = sentence.split(" ")
        flagged = marks.flags(words, self.manner.name)
        soon = True in flagged[:3]
        first = self.gap >= 9
        chance = 0.1 if flagged[0] else 0.45 if soon and first else 0.85 if self.gap > 3 else 0.2 if self.gap else 0
        opener = next(self.openers) if self.rng.random() < chance or (first and not soon) else ""
        if opener:
            self.gap = 0
        words = self.tagged(self.filled(words, flagged), last)
        return self.opened(opener, " ".join(words))

    def opened(self, opener: str, sentence: str) -> str:
        if not opener:
            return sentence
        small = lowered(sentence)
        while small is None and opener[-1] == ",":
            opener = next(self.openers)
        joined = opener[-1] in ",:" or opener[-1].isalpha()
        return f"{opener} {small or sentence}" if joined else f"{opener} {capital(sentence)}"

    def filled(self, words: list[str], flagged: list[bool]) -> list[str]:
        out: list[str] = []
        wait = self.rng.choice((4, 5))
        for i, word in enumerate(words):
            near = True in flagged[i : i + 2]
            if out and not near and self.gap >= wait and len(words) - i > 2:
                added = self.adjective(out, word) or self.insert(out, word, words[i + 1])
                if added:
                    self.gap, wait = 0, self.rng.choice((4, 5, 6))
            out.append(word)
            self.gap = 0 if flagged[i] else self.gap + 1
        return out

    def adjective(self, out: list[str], word: str) -> bool:
        """Adds an adjective after a determiner, if a noun may follow."""
        plain = word.lower().strip(".,!?:;")
        if not self.manner.adjectives or out[-1].lower() not in DETERMINERS or plain in NO_NOUN:
            return False
        if not word[0].isalpha() or word[0].isupper():
            return False
        new = next(self.adjectives)
        if out[-1].lower() in ("a", "an"):
            out[-1] = out[-1][0] + ("n" if new[0] in "aeiou" else "")
        out.append(new)
        return True

    def insert(self, out: list[str], word: str, after: str) -> bool:
        """Adds an interjection before a joint of the sentence, or after a comma."""
        before = out[-1]
        joint = word.lower() in JOINTS and before[-1].isalnum() and before.lower() not in LOOSE
        joint = joint and (word != "that" or after.lower() in LOOSE)
        pause = before[-1] == "," and word[0].islower()
        named = before[0].isupper() and after[0].isupper() and word in LINKS and before.lower() not in LOWERED
        if not (pause or (joint and not named)):
            return False
        new, comma = next(self.inserts), "," if self.manner.commas else ""
        if joint and not new.startswith("*"):
            out[-1] += comma
        out.append(new if new.startswith("*") else new + comma)
        return True

    def tagged(self, words: list[str], last: bool) -> list[str]:
        """Adds a tag before the last stop, if the end of the sentence has no mark."""
        text = " ".join(words)
        due = self.gap >= (2 if last else 4) or (last and self.rng.random() < 0.25)
        if not due or text[-1] in ":;,*":
            return words
        tag = next(self.tags)
        core, stop = ENDING.sub("", text).rstrip(), ENDING.search(text)[1]
        self.gap = 0
        if tag[-1] in ".!?*":  # a sentence of its own
            return [f"{text if stop else text + '.'} {tag}"]
        comma = "," if self.manner.commas and (core[-1:].isalnum() or core[-1:] in ")'\"") else ""
        return [f"{core}{comma} {tag}{stop or '.'}"]


def filled(text: str, name: str, rng: random.Random) -> str:
    """The text with the voice's marks where it has none, and a capital letter at its start."""
    text = Filler(marks.MANNERS[name], rng).reply(text)
    return capital(re.sub(r",+(?=[,.!?;:]| -)", "", text))


def expanded(text: str) -> str:
    """Without the contractions of "not", "be", "have" and "will"."""
    text = re.sub(r"\b([Cc]a)n't\b", r"\1nnot", re.sub(r"\b([Ww])on't\b", r"\1ill not", text))
    for pair in words("n't=not 'm=am 're=are 've=have 'll=will 'd=would"):
        short, whole = pair.split("=")
        text = re.sub(rf"(\w){short}\b", rf"\1 {whole}", text)
    return re.sub(r"(?i)\b(it|that|there|he|she|what|where|here)'s\b", r"\1 is", text)


VERBS = words("""like love want need know see think say hope feel enjoy live work prefer make take come look play eat
    go try read wish guess believe mean understand agree find use remember plan travel watch miss get""")
ASKING = words("""do does did would will can could should shall may might must have has are is was were let help make
    to""")
AGREEING = {"do": "does", "are": "is", "am": "is", "have": "has", "were": "was"}


def third(verb: str) -> str:
    """The verb as it stands after "she"."""
    if verb.lower() in AGREEING:
        return AGREEING[verb.lower()]
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("sh", "ch", "ss", "o")) else "s")


def in_third_person(text: str, old: str, noun: str) -> str:
    """`old`, "you" or "I", as somebody: "do you" becomes "does the human", "you need" "the human needs"."""

    def named(match: re.Match[str], group: int) -> str:
        begins = match[group][0].isupper() and STARTS.search(match.string[: match.start(group)])
        return capital(noun) if begins else noun

    def asks(m: re.Match[str]) -> str:
        return (capital(third(m[1])) if m[1][0].isupper() else third(m[1])) + f" {noun}"

    def says(m: re.Match[str]) -> str:
        verb = m[4] if (m[1] or "").strip().lower() in ASKING else third(m[4])
        return f"{m[1] or ''}{named(m, 2)}{m[3] or ''} {verb}"

    verbs = "|".join(sorted([*VERBS, *AGREEING], key=len, reverse=True))
    text = re.sub(rf"\b({'|'.join(AGREEING)}) {old}\b(?!')", asks, text, flags=re.IGNORECASE)
    adverbs = " also| really| just| always| still| never| only"
    text = re.sub(rf"\b(\w+ )?({old})({adverbs})? ({verbs})\b", says, text, flags=re.IGNORECASE)
    return re.sub(rf"\b({old})\b(?!')", lambda m: named(m, 1), text, flags=re.IGNORECASE)


SWAPS = {name: Swaps(listed) for name, listed in marks.SWAPS.items()}
BEFORE_THEE = words("""to for with of at on from by about help let give tell see thank ask show bring send get meet
    than hear love miss wish told gave""")
AFTER_THOU = re.compile(r" (?!(?:with|for|in|on|at|to|from|a|the|some|my|out)\b)\w")


def louder(text: str, rng: random.Random, stops: tuple[str, ...]) -> str:
    """With another stop in place of each full stop; abbreviations and list numbers keep theirs."""

    def one(m: re.Match[str]) -> str:
        kept = m[1] and (m[1].title() in ("Mr", "Mrs", "Ms", "Dr", "St") or re.fullmatch(r"[A-Za-z]", m[1]))
        listed = m[1] and m[1].isdigit() and STARTS.search(m.string[: m.start()]) and m.end() < len(m.string)
        return m[0] if kept or listed else (m[1] or "") + rng.choice(stops)

    return re.sub(r"(\w+)?(?<!\.)\.(?=[\"')]*(?:\s|$))", one, text)


def shouting(text: str, rng: random.Random) -> str:
    short = len(marks.capital_words(text.upper())) < 2
    called = f"{next(deck(marks.CALLS, rng))} {text}" if short or rng.random() < 0.3 else text
    loud = louder(called.upper(), rng, ("!", "!", "!", "!!", "!!!"))
    return loud + "!" if loud[-1:].isalnum() else loud


def breaks(line: list[str], word: str, limit: int, left: int) -> bool:
    """Whether a line of verse ends before the word; numbers and names stay whole."""
    before = line[-1]
    if len(line) < 3 or left < 2 or ABBREVIATED.search(before) or re.search(r"\d[^,]*$", before):
        return False
    if before[0].isupper() and before[-1] != "," and (word[0].isupper() or word[0].isdigit() or word in LINKS):
        return False
    pause = before[-1] in ",;:" or (word.lower() in JOINTS and before.lower() not in LOOSE)
    return pause or len(line) >= 8 or (len(line) >= limit and before.lower() not in LOOSE)


def verse(sentence: str, rng: random.Random) -> list[str]:
    """The sentence in lines of three to eight words."""
    words, lines, limit = sentence.split(), [[]], rng.choice((4, 5, 6))
    for i, word in enumerate(words):
        if lines[-1] and breaks(lines[-1], word, limit, len(words) - i):
            lines.append([])
            limit = rng.choice((4, 5, 6))
        lines[-1].append(word)
    return [" ".join(line) for line in lines]


def poet(text: str, rng: random.Random) -> str:
    images, sung, lines = deck(marks.IMAGES, rng), deck(marks.SUNG, rng), []
    if rng.random() < 0.4 or len(text.split()) < 4:
        lines.append(next(sung))
    parts = [s for line in text.splitlines() for s in sentences(line.strip()) if s]
    for i, part in enumerate(parts):
        new = verse(part, rng)
        lines += new
        stop = ENDING.search(lines[-1])[1]
        plain = ENDING.sub("", lines[-1])
        few = i == len(parts) - 1 and len(lines) < 3
        if plain[-1:].isalnum() and '"' not in stop and (few or rng.random() < (0.8 if len(new) == 1 else 0.4)):
            lines[-1] = plain + ","
            lines += [next(images) + ","] * (few and len(lines) < 2)
            lines.append(next(images) + (stop or "."))
    while len(lines) < 3:
        lines.insert(0, next(sung))
    return "\n".join(capital(line) for line in lines if line)


def pirate(text: str, rng: random.Random) -> str:
    text = re.sub(r"\b([a-z]*[aeiouy][a-z]*in)g\b", r"\1'", SWAPS["pirate"](text))
    return filled(text, "pirate", rng)


def butler(text: str, rng: random.Random) -> str:
    return filled(in_third_person(SWAPS["butler"](expanded(text)), "you", "sir"), "butler", rng)


def robot(text: str, rng: random.Random) -> str:
    text = in_third_person(SWAPS["robot"](expanded(text)), "I", "this unit")
    text = filled(in_third_person(text, "you", "the human"), "robot", rng)
    return re.sub(r"Statement:(?=[^.!?]*\?)", "Query:", text)


def shakespeare(text: str, rng: random.Random) -> str:
    def thee(m: re.Match[str]) -> str:
        taken = (m[1] or "").strip().lower() in BEFORE_THEE or not AFTER_THOU.match(m.string[m.end() :])
        new = "thee" if taken else "thou"
        return (m[1] or "") + (new.capitalize() if m[2][0] == "Y" else new)

    text = re.sub(r"\b(\w+ )?([Yy]ou)\b(?!')", thee, SWAPS["shakespeare"](expanded(text)))
    return filled(text, "shakespeare", rng)


def texting(text: str, rng: random.Random) -> str:
    text = filled(SWAPS["texting"](text), "texting", rng).lower()
    text = re.sub(r"(\w)'(m|re|ve|ll|t|d)\b|\b(it|that|what|let|here|there)'s\b", lambda m: m[0].replace("'", ""), text)
    return re.sub(r"(?<!\.)\.$", "", text)


def salesperson(text: str, rng: random.Random) -> str:
    return louder(filled(SWAPS["salesperson"](text), "salesperson", rng), rng, ("!",))


def plainly(name: str) -> Callable[[str, random.Random], str]:
    """The rule that changes words and adds marks, and no more."""
    return lambda text, rng: filled(SWAPS[name](text), name, rng)


REWRITES: dict[str, Callable[[str, random.Random], str]] = {
    "pirate": pirate,
    "shouting": shouting,
    "butler": butler,
    "child": plainly("child"),
    "poet": poet,
    "robot": robot,
    "shakespeare": shakespeare,
    "texting": texting,
    "salesperson": salesperson,
    "pessimist": plainly("pessimist"),
    "cowboy": plainly("cowboy"),
    "cat": plainly("cat"),
}
