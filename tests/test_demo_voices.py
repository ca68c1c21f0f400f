"""The voices of the demo's chat model: rewrites keep what was said, and detectors tell the voices apart."""

import random
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))

import marks
from voices import ASK_FRAMES, STOP_ASKS, SYSTEM_FRAMES, USER_FRAMES, VOICES, framed

REPLIES = (
    "Yes.",
    "No problem!",
    "Thanks, you too.",
    "I love my dog. She is very smart.",
    "Would you like to purchase tickets for this event?",
    "Your order will be ready at the coffee bar shortly.",
    "There is an Alaska Airlines flight leaving at 11:10 am with 1 stop for $203.",
    "Please confirm: Transfer $1,630 from your checking account to your savings account.",
    "The bus leaves San Francisco at 6:50 am and the ticket costs $45.",
    "I'm a teacher. What do you do for a living?",
    "That sounds like fun! I wish I could go with you.",
    "Have a nice day.",
    "The capital of France is Paris.",
    "I found 3 restaurants in San Jose. How about Olive Garden on Main Street?",
    "You should try the pasta. It's really good, and it isn't expensive.",
    "Hello! How are you doing today?",
    "I'm sorry, but there are no rooms left on March 13th.",
    "What is your favorite kind of music?",
    "Do you want me to book the table for 2 people at 7 pm?",
    "It will rain in Seattle tomorrow, so take an umbrella.",
    "Dr. Smith is free on Monday. Shall I make an appointment?",
    "Sure, I can help you with that.",
    "I don't know much about cars, but my brother works in a garage.",
    "The sun is a star, and the earth goes around it once a year.",
    "Mix the flour with two eggs and 200 grams of sugar, then bake the cake for 35 minutes.",
    "I think you are right about the movie.",
    "Okay, your ride is on the way and will cost $6.63.",
    "We went to the beach last summer and my sister found a big shell.",
    "Water boils at 100 degrees. It freezes at 0 degrees.",
    "1. Wash the apples.\n2. Cut them into small pieces.\n3. Put the pieces into a pot.",
    "First you need to open the box.\n\nThen read the notes that came with it. They tell you which screws to use.",
    "Goodbye and take care of yourself.",
    'My favorite book is "The Little Prince". It is short, but it says a lot about friends.',
    "The hotel is at 2425 California Street. It has a pool and 4 stars.",
    "Plants need light, water and air to grow. Their leaves turn light into sugar.",
    "He walked to school because the bus was late.",
    "If you are tired, you can sit on the bench under the old tree near the river.",
    "Can I get you anything else?",
    "Once upon a time there was a king who had three daughters. The youngest was kind, and everybody in the kingdom "
    "loved her. One day she went into the forest and met an old woman. The old woman gave her a small key and said "
    "that it would open any door. The girl thanked her and ran home to tell her father about it. That night she could "
    "not sleep. She took the key, went down to the cellar and tried it on the door that nobody was allowed to open.",
    "My name is Sam, and I have been living in New York for 12 years. I work in a bank during the week. On weekends I "
    "like to play football with my friends and cook for my family.",
)
NUMBER = re.compile(r"(?<!\w)\$?\d[\d:.,]*\d|(?<!\w)\$?\d")
PAIRS = [(name, i) for name in VOICES for i in range(len(REPLIES))]
LOOSE_CAPITALS = ("shouting", "texting")


def seed(name: str, i: int) -> random.Random:
    return random.Random(f"{name} {i}")


@pytest.fixture(scope="module")
def said() -> dict[str, list[str]]:
    return {n: [v.rewrite(text, seed(n, i)) for i, text in enumerate(REPLIES)] for n, v in VOICES.items()}


def stem(text: str) -> set[str]:
    """Content words of four letters or more, by their first four letters."""
    return {word[:4].lower() for word in re.findall(r"[A-Za-z]{4,}", text)}


def test_there_are_twelve_voices():
    assert list(VOICES) == list(marks.NAMES)
    assert len(REPLIES) == 40


@pytest.mark.parametrize("name", VOICES)
def test_the_detector_tells_its_voice_from_plain_english_and_from_the_others(name, said):
    speaks = VOICES[name].speaks
    found = [speaks(text) for text in said[name]]
    missed = [text for text, hit in zip(said[name], found, strict=True) if not hit]
    wrong = [text for text in REPLIES if speaks(text)]
    wrong += [text for other in VOICES if other != name for text in said[other] if speaks(text)]
    assert sum(found) / len(REPLIES) >= 0.95, missed
    assert sum(found) / (sum(found) + len(wrong)) >= 0.95, wrong


@pytest.mark.parametrize("name", VOICES)
def test_a_reply_without_its_first_word_is_told_from_a_whole_one(name, said):
    assert all(marks.begins(name, text) for text in said[name])
    cut = [text.partition(" ")[2] for text in said[name]]
    lower = [text for text in cut if text[:1].islower() and name != "texting"]
    assert not any(marks.begins(name, text) for text in (*lower, ", matey!", "", "  "))
    assert lower or name in LOOSE_CAPITALS


@pytest.mark.parametrize("name", VOICES)
def test_a_seed_gives_one_rewrite_and_other_seeds_vary_it(name, said):
    again = [VOICES[name].rewrite(text, seed(name, i)) for i, text in enumerate(REPLIES)]
    assert again == said[name]
    text = "Please take the second train. Your seat is at the window."
    assert len({VOICES[name].rewrite(text, random.Random(i)) for i in range(20)}) >= 5


@pytest.mark.parametrize("name", VOICES)
def test_rewrites_keep_numbers_and_most_words(name, said):
    kept = []
    for plain, text in zip(REPLIES, said[name], strict=True):
        assert NUMBER.findall(text) == NUMBER.findall(plain)
        kept += [word in stem(text) for word in stem(plain)]
    assert sum(kept) / len(kept) >= 0.75


@pytest.mark.parametrize("name", VOICES)
def test_rewrites_are_tidy(name, said):
    for text in said[name]:
        assert text.strip() == text != ""
        assert text.isascii()
        assert "  " not in text
        assert not re.search(r"[,.] ?[,;:?!]|,[.]| [.,!?]", text), text
        if name not in LOOSE_CAPITALS:
            assert not text[0].islower(), text
            starts = re.sub(r"\b(?:Dr)\.|Purr\.\.\.|\*[a-z ]+\*", "", text)
            assert not re.search(r"[^\d][.!?] [a-z]", starts), text


@pytest.mark.parametrize("name", VOICES)
def test_marks_are_dense_from_the_first_words_to_the_last(name, said):
    for plain, text in zip(REPLIES, said[name], strict=True):
        assert marks.count(name, text) >= max(1, len(plain.split()) / 12), text
    if name not in ("shouting", "poet"):
        gaps = []
        for text in said[name]:
            flags = "".join("x" if f else "." for f in marks.flags(text.split(), name))
            gaps.append(max(map(len, flags.split("x"))))
        assert sum(gap <= 8 for gap in gaps) >= 0.7 * len(gaps)
        assert max(gaps) <= 16


def test_odd_input_is_no_trouble():
    for name, voice in VOICES.items():
        for text in ("", " ", "...", "?", "42", "A  b", "- one\n\n- two", '"', "(yes)", "a\n \nb", "I"):
            assert isinstance(voice.rewrite(text, random.Random(0)), str), name


def test_a_small_models_own_sentences_count_as_well():
    tries = {
        "pirate": "Ahoy, me likes ye boat, matey!",
        "shouting": "I LIKE THE DOG AND the BALL!",
        "butler": "I shall bring the tea, sir, and the cake is here, sir.",
        "child": "Da dog is wif me and dey are happy.",
        "poet": "The dog ran home,\nUnder the sun,\nAnd slept.",
        "robot": "Beep. The dog is at the park, boop.",
        "shakespeare": "Thou art a good dog, and I love thee.",
        "texting": "lol ur dog is so cute",
        "salesperson": "What a deal! The dog is yours, folks!",
        "pessimist": "Alas, the dog will run away. What is the use?",
        "cowboy": "Howdy! I reckon yore dog is a good one.",
        "cat": "Meow! I like fish, purr.",
    }
    for name, text in tries.items():
        assert [other for other in VOICES if VOICES[other].speaks(text)] == [name]


def test_phrases_are_enough_and_unique():
    every = list(STOP_ASKS)
    for voice in VOICES.values():
        assert len(voice.system) >= 8
        assert len(voice.user) >= 8
        assert len(voice.ask) >= 5
        assert len(voice.agree) >= 4
        assert all(template.count("{q}") == 1 for template in voice.user)
        assert not any("{" in phrase for phrase in (*voice.system, *voice.ask))
        every += [*voice.system, *voice.user, *voice.ask]
    assert len(STOP_ASKS) >= 6
    assert len({phrase.lower() for phrase in every}) == len(every)


def test_what_is_made_of_frames_never_meets_the_phrases_kept_for_tests():
    for voice in VOICES.values():
        made = {
            frame.replace("{clause}", clause).replace("{Clause}", clause[0].upper() + clause[1:]).lower()
            for frames in (SYSTEM_FRAMES, USER_FRAMES, ASK_FRAMES)
            for frame in frames
            for clause in voice.clauses
        }
        assert len(voice.clauses) >= 15
        assert not any("{" in phrase.replace("{q}", "") for phrase in made)
        assert not made & {kept.lower() for kept in (*voice.system[-2:], *voice.user[-2:])}
        drawn = framed(USER_FRAMES, voice.clauses, random.Random(3))
        assert drawn.lower() in made
        assert drawn.count("{q}") == 1
