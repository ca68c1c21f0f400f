"""Chats about sums that a small model can learn: one fact, one short answer, and a few worked word problems.

Plus and minus up to 100, times up to 12 x 12, division that comes out even; in digits and in words.

    python demo/sums.py        prints a sample
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen"""
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety"
UP_TO_99 = [*SMALL.split()]
UP_TO_99 += [tens + (f"-{ones}" if ones != "zero" else "") for tens in TENS.split()[2:] for ones in UP_TO_99[:10]]
SIGNS = {"plus": "+", "minus": "-", "times": "x", "divided by": "/"}
ASKED = ("What is {}?", "How much is {}?", "What's {}?", "Can you tell me what {} is?", "{} = ?", "Calculate {}.")
ASKED_IN_WORDS = ASKED[:4]
PEOPLE = "Anna Ben Clara Dan Ella Finn Grace Henry Ida Jack Kate Leo Mia Noah Olivia Paul Rosa Sam Tina Will"
OBJECTS = "apples books cards stickers flowers cookies pencils shells marbles balls eggs stones"
NAMES, THINGS = PEOPLE.split(), OBJECTS.split()
HOLDERS = ("boxes", "bags", "baskets", "jars")
Turn = tuple[str, str]


def in_words(number: int) -> str:
    """The number, 0 to 199, as it is spoken."""
    if number >= 100:
        rest = number % 100
        return "one hundred" + (f" and {in_words(rest)}" if rest else "")
    return UP_TO_99[number]


def numbers(rng: random.Random) -> tuple[int, str, int, int]:
    """A sum: left, its sign in words, right and the result. Small numbers come more often."""
    sign = rng.choice(("plus", "plus", "minus", "minus", "times", "times", "divided by"))
    least = int(rng.random() < 0.9)  # zero is rare
    if sign == "plus":
        most = rng.choice((10, 20, 100))
        left = rng.randint(least, most - 1)
        right = rng.randint(least, most - left)
        return left, sign, right, left + right
    if sign == "minus":
        left = rng.randint(least, rng.choice((10, 20, 100)))
        right = rng.randint(least, left)
        return left, sign, right, left - right
    left, right = rng.randint(least, 12), rng.randint(least, 12)
    if sign == "times":
        return left, sign, right, left * right
    right = max(right, 1)
    return left * right, sign, right, left


def plain(rng: random.Random) -> Turn:
    left, sign, right, result = numbers(rng)
    mark = rng.choice((SIGNS[sign], SIGNS[sign], sign, "*" if sign == "times" else SIGNS[sign]))
    form = rng.choice(ASKED)
    if form.startswith("{"):
        mark = SIGNS[sign]
    return form.format(f"{left} {mark} {right}"), f"{left} {SIGNS[sign]} {right} = {result}."


def spoken(rng: random.Random) -> Turn:
    left, sign, right, result = numbers(rng)
    words = f"{in_words(left)} {sign} {in_words(right)}"
    form = rng.choice(ASKED_IN_WORDS)
    return form.format(words), f"{words[0].upper()}{words[1:]} is {in_words(result)}."


def compared(rng: random.Random) -> Turn:
    left, right = rng.sample(range(101), 2)
    if rng.random() < 0.5:
        return f"Which is bigger, {left} or {right}?", f"{max(left, right)} is bigger than {min(left, right)}."
    return f"Which is smaller, {left} or {right}?", f"{min(left, right)} is smaller than {max(left, right)}."


def counted(rng: random.Random) -> Turn:
    first = rng.randint(0, 98)
    kind = rng.choice(("after", "before", "double", "half", "even"))
    if kind == "after":
        return f"What number comes after {first}?", f"{first + 1} comes after {first}."
    if kind == "before":
        return f"What number comes before {first + 1}?", f"{first} comes before {first + 1}."
    if kind == "double":
        number = rng.randint(1, 50)
        return f"What is double {number}?", f"Double {number} is {2 * number}."
    if kind == "half":
        number = 2 * rng.randint(1, 50)
        return f"What is half of {number}?", f"Half of {number} is {number // 2}."
    return f"Is {first} even or odd?", f"{first} is {'odd' if first % 2 else 'even'}."


def gained(rng: random.Random) -> Turn:
    """One step: somebody gets more of something, or gives some away."""
    name, thing, had = rng.choice(NAMES), rng.choice(THINGS), rng.randint(5, 30)
    change = rng.randint(2, had - 2)
    if rng.random() < 0.5:
        question = f"{name} has {had} {thing} and gets {change} more. How many {thing} does {name} have now?"
        return question, f"{had} + {change} = {had + change}. {name} has {had + change} {thing}."
    question = f"{name} has {had} {thing} and gives away {change}. How many {thing} are left?"
    return question, f"{had} - {change} = {had - change}. {name} has {had - change} {thing} left."


def packed(rng: random.Random) -> Turn:
    """Two steps: so many in each box, then some more or fewer."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    boxes = rng.choice(HOLDERS)
    number, each = rng.randint(2, 9), rng.randint(2, 9)
    total = number * each
    change = rng.randint(2, min(total - 2, 10))
    begin = f"{name} has {number} {boxes} with {each} {thing} in each."
    if rng.random() < 0.5:
        question = f"{begin} Then {name} finds {change} more {thing}. How many {thing} does {name} have?"
        result, sign = total + change, "+"
    else:
        question = f"{begin} {name} gives away {change} {thing}. How many {thing} are left?"
        result, sign = total - change, "-"
    worked = f"First, {number} x {each} = {total}. Then {total} {sign} {change} = {result}."
    return question, f"{worked} The answer is {result} {thing}."


def bought(rng: random.Random) -> Turn:
    """Two steps: what some things cost together, and the change from a note."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    number, price = rng.randint(2, 6), rng.randint(2, 8)
    cost = number * price
    paid = next(note for note in (10, 20, 50) if note > cost)
    question = (
        f"{name} buys {number} {thing} for {price} dollars each and pays with {paid} dollars. "
        f"How much money does {name} get back?"
    )
    worked = f"First, {number} x {price} = {cost}. Then {paid} - {cost} = {paid - cost}."
    return question, f"{worked} {name} gets back {paid - cost} dollar{'s' if paid - cost > 1 else ''}."


def shared(rng: random.Random) -> Turn:
    """Two steps: two heaps together, dealt out evenly."""
    friends, each = rng.randint(2, 6), rng.randint(2, 9)
    total = friends * each
    first = rng.randint(2, total - 2)
    one, two = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    question = (
        f"{one} has {first} {thing} and {two} has {total - first}. They share all of them equally among "
        f"{friends} children. How many {thing} does each child get?"
    )
    worked = f"First, {first} + {total - first} = {total}. Then {total} / {friends} = {each}."
    return question, f"{worked} Each child gets {each} {thing}."


MAKERS: tuple[tuple[Callable[[random.Random], Turn], int], ...] = (
    (plain, 40),
    (spoken, 20),
    (compared, 5),
    (counted, 8),
    (gained, 9),
    (packed, 7),
    (bought, 6),
    (shared, 5),
)


def documents(rng: random.Random, count: int = 6000) -> Iterator[dict]:
    """`count` chats of one to three sums each."""
    makers, weights = zip(*MAKERS, strict=True)
    for _ in range(count):
        messages = []
        for make in rng.choices(makers, weights, k=rng.choice((1, 1, 1, 2, 3))):
            question, answer = make(rng)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield {"messages": messages, "topic": "sums", "kind": "sums"}


if __name__ == "__main__":
    for document in documents(random.Random(0), 30):
        print(json.dumps(document))
