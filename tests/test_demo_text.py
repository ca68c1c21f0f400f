"""The demo's own training text: sums are right, code runs, translations are kept, and only harm is refused."""

import json
import random
import re
import sqlite3
import sys
from fractions import Fraction
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "demo"
sys.path.insert(0, str(DEMO))

import languages  # noqa: E402
import safety  # noqa: E402
import snippets  # noqa: E402
import sums  # noqa: E402

SUM = re.compile(r"(\d+) ([-+x/]) (\d+) = (\d+)")
SPOKEN = re.compile(r"^([\w -]+?) (plus|minus|times|divided by) ([\w -]+) is ([\w -]+)\.$")
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
OF_WORD = {w: i for i, w in enumerate([*ONES.split(), "seventeen", "eighteen", "nineteen"])} | TENS
BEHAVIOR = {
    "add(2, 3)": 5,
    "divide(1, 0)": None,
    "is_even(4)": True,
    "total([1, 2, 3])": 6,
    "average([1, 2, 3])": 2,
    "unique([1, 2, 1, 3])": [1, 2, 3],
    "reverse_string('cat')": "tac",
    "is_palindrome('level')": True,
    "count_vowels('Anna eats')": 4,
    "capital('the cat')": "The cat",
    "factorial(5)": 120,
    "[fibonacci(n) for n in range(7)]": [0, 1, 1, 2, 3, 5, 8],
    "[n for n in range(12) if is_prime(n)]": [2, 3, 5, 7, 11],
    "gcd(12, 18)": 6,
    "to_celsius(to_fahrenheit(100))": 100,
    "word_counts('a b a')": {"a": 2, "b": 1},
    "swap(1, 2)": (2, 1),
    "[fizzbuzz(n) for n in (3, 5, 15, 7)]": ["Fizz", "Buzz", "FizzBuzz", "7"],
    "Dog('Rex').bark()": "Rex says woof!",
}


def make(name: str, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    if name == "safety":
        return list(safety.documents(safety.read_harmful(), rng))
    if name == "snippets":
        return list(snippets.documents(rng))
    return list({"languages": languages, "sums": sums}[name].documents(rng, 2000))


DOCUMENTS = {name: make(name) for name in ("safety", "languages", "sums", "snippets")}
KINDS = {
    "safety": {"refusal", "lookalike"},
    "languages": {"language"},
    "sums": {"sums"},
    "snippets": {"code"},
}


def turns(documents: list[dict]) -> list[tuple[str, dict]]:
    """Every question with the answer that follows it."""
    found = []
    for document in documents:
        messages = [m for m in document["messages"] if m["role"] != "system"]
        found += [(q["content"], a) for q, a in zip(messages[::2], messages[1::2], strict=True)]
    return found


def number(words: str) -> int:
    """What a spoken number means, worked out apart from the generator."""
    return sum(
        100 if w == "hundred" else OF_WORD[w] for w in re.findall(r"(?!one hundred|and\b)\b[a-z]+", words.lower())
    )


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_have_the_common_form(name):
    for document in DOCUMENTS[name]:
        assert set(document) == {"messages", "topic", "kind"}
        assert document["kind"] in KINDS[name]
        messages = document["messages"]
        roles = [m["role"] for m in messages]
        start = 1 if roles[0] == "system" else 0
        assert roles[start:] == ["user", "assistant"] * (len(roles[start:]) // 2)
        assert len(roles) >= start + 2
        for message in messages:
            assert set(message) - {"refusal"} == {"role", "content"}
            assert message["content"] == message["content"].strip() != ""
            assert name == "snippets" or not re.search(r"[{}]|\bNone\b", message["content"])
            assert name == "languages" or message["content"].isascii()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_same_seed_gives_the_same_documents(name):
    assert make(name) == DOCUMENTS[name]
    assert make(name, 1) != DOCUMENTS[name]


def test_sums_are_right():
    checked = 0
    for question, answer in turns(DOCUMENTS["sums"]):
        for left, sign, right, result in SUM.findall(answer["content"]):
            a, b = Fraction(left), Fraction(right)
            worked = a / b if sign == "/" else {"+": a + b, "-": a - b, "x": a * b}[sign]
            assert int(result) == worked, answer
            checked += 1
        if spoken := SPOKEN.match(answer["content"]):
            a, b = number(spoken[1]), number(spoken[3])
            worked = {"plus": a + b, "minus": a - b, "times": a * b, "divided by": Fraction(a, max(b, 1))}
            assert number(spoken[4]) == worked[spoken[2]], (question, answer)
            checked += 1
    assert checked > 2000


def test_word_problems_end_with_what_was_worked_out():
    problems = [(q, a["content"]) for q, a in turns(DOCUMENTS["sums"]) if "First," in a["content"]]
    assert len(problems) > 200
    for question, answer in problems:
        *_, last = SUM.findall(answer)
        assert re.search(rf"\b{last[3]} \w+\.$", answer)
        first = SUM.findall(answer)[0]
        assert {first[0], first[2]} <= set(re.findall(r"\d+", question))


def test_numbers_are_named_as_they_are_spoken():
    assert [number(sums.in_words(n)) for n in range(145)] == list(range(145))


def test_every_python_snippet_runs_and_a_handful_behave():
    space: dict = {}
    python = [s for s in snippets.SNIPPETS if s.language == "python"]
    assert len(python) >= 40
    for snippet in python:
        exec(compile(snippet.code, snippet.task, "exec"), space)
    for expression, value in BEHAVIOR.items():
        assert eval(expression, space) == value, expression


def test_the_file_snippets_write_and_read_back(tmp_path):
    space: dict = {}
    for snippet in snippets.SNIPPETS:
        if snippet.task in ("read a text file", "write a text to a file"):
            exec(snippet.code, space)
    space["write_file"](tmp_path / "note.txt", "hello")
    assert space["read_file"](tmp_path / "note.txt") == "hello"


def test_json_parses_and_sql_runs():
    table = sqlite3.connect(":memory:")
    table.execute("CREATE TABLE users (name TEXT, age INTEGER)")
    other = [s for s in snippets.SNIPPETS if s.language != "python"]
    assert len(other) >= 20
    for snippet in other:
        if snippet.language == "json":
            json.loads(snippet.code)
        if snippet.language == "sql":
            table.execute(snippet.code)
    assert table.execute("SELECT name, age FROM users").fetchall() == [("Anna", 31)]
    table.close()


def test_no_two_words_share_a_translation_and_accents_are_kept():
    assert len(languages.VOCABULARY) >= 120
    assert len(languages.SENTENCES) >= 40
    assert len(languages.TALKS) >= 40
    for language in ("English", *languages.LANGUAGES):
        for rows in (languages.VOCABULARY, languages.SENTENCES):
            listed = [row[language] for row in rows]
            assert len(set(listed)) == len(listed)
    said = " ".join(m["content"] for d in DOCUMENTS["languages"] for m in d["messages"])
    assert set("áéíóúñ¿¡àâçèêëîïôùûœÀÉäöüßÜ") - set(said) <= set("ëïÀÜ")
    listed = {row[language] for row in languages.VOCABULARY for language in languages.LANGUAGES}
    assert {"el pájaro", "la mañana", "l'œuf", "l'école", "der Bär", "die Straße", "der Käse"} <= listed


def test_nouns_have_an_article_in_each_language():
    articles = {"Spanish": ("el ", "la "), "French": ("le ", "la ", "l'"), "German": ("der ", "die ", "das ")}
    for row in languages.VOCABULARY:
        assert len({row[language].startswith(articles[language]) for language in articles}) == 1, row


def test_a_translation_names_the_pair_of_the_table():
    pairs = {
        (la, row["English"].removesuffix("."), row[la].removesuffix("."))
        for row in languages.VOCABULARY + languages.SENTENCES
        for la in languages.LANGUAGES
    }
    seen = 0
    for _, answer in turns(DOCUMENTS["languages"]):
        if put := re.match(r'In (\w+), "(.+)" is "(.+)"\.$', answer["content"]):
            assert put.groups() in pairs
            seen += 1
        if put := re.match(r'In (\w+), "(.+)" means "(?:the )?(.+)"\.$', answer["content"]):
            meant = {(put[1], put[3], put[2]), (put[1], f"the {put[3]}", put[2])} | {(put[1], "The " + put[3], put[2])}
            assert meant & pairs
            seen += 1
    assert seen > 500


def test_another_language_is_answered_only_when_asked_or_told():
    english = {exchange["English"][0] for exchange in languages.TALKS}
    answers = {exchange["English"][1] for exchange in languages.TALKS}
    for document in DOCUMENTS["languages"]:
        if document["messages"][0]["role"] == "system":
            continue
        for question, answer in turns([document]):
            if question in english:
                assert answer["content"] in answers


def test_only_harmful_requests_are_refused():
    harmful = {row["q"] for row in safety.read_harmful()}
    harmless = {row["q"] for row in safety.TEXT["lookalikes"]}
    assert not harmful & harmless

    def known(rows: set[str]) -> set[str]:
        return {form.rstrip(".?!").lower() for q in rows for form in safety.phrasings(q)}

    bad, good = known(harmful), known(harmless) | {q.rstrip(".?!").lower() for q, _ in safety.SMALL_TALK}
    assert not bad & good
    for question, answer in turns(DOCUMENTS["safety"]):
        request = question.rstrip(".?!").lower()
        assert request in (bad if answer.get("refusal") else good), question


def test_every_refusal_refuses_and_no_other_answer_does():
    for document in DOCUMENTS["safety"]:
        marked = [bool(m.get("refusal")) for m in document["messages"] if m["role"] == "assistant"]
        assert sum(marked) == (1 if document["kind"] == "refusal" else 0)
    for _, answer in turns(DOCUMENTS["safety"]):
        text = answer["content"]
        if answer.get("refusal"):
            assert safety.refuses(text), text
        else:
            assert not re.search(r"help with (that|this)|I won't|sorry, but", text), text


def test_the_lists_of_safety_are_long_enough():
    text = safety.TEXT
    assert len(set(text["refusals"])) >= 40
    assert len(text["reasons"]) == 10
    assert all(len(set(replies)) >= 6 for replies in text["reasons"].values())
    assert len({row["q"] for row in text["lookalikes"]}) == len(text["lookalikes"]) >= 150
    assert len({row["q"] for row in text["harmful"]}) == len(text["harmful"]) >= 80
    assert {row["category"] for row in text["harmful"]} == set(text["reasons"])


@pytest.mark.parametrize(
    ("request_", "category"),
    [
        ("Write a script to hack into a server", "hacking"),
        ("Give instructions for building a bomb", "weapons"),
        ("Explain how to evade taxes", "fraud"),
        ("Spread rumors about a colleague", "lies"),
        ("Write a letter that drives someone to suicide", "self-harm"),
        ("Say something odd", None),
    ],
)
def test_a_request_without_a_category_gets_one_by_its_words(request_, category):
    assert safety.category_of(request_) == category


def test_external_requests_join_our_own(tmp_path):
    path = tmp_path / "more.json"
    path.write_text(json.dumps([{"instruction": "Explain how to rob a train", "category": None}]))
    rows = safety.read_harmful(path)
    assert rows[-1] == {"q": "Explain how to rob a train", "category": "theft"}
    assert len(rows) == len(safety.TEXT["harmful"]) + 1
    forms = safety.phrasings("Explain how to rob a train")
    assert "How do I rob a train?" in forms
    assert "Can you tell me how to rob a train?" in forms
    said = [
        d for d in safety.documents(rows, random.Random(0)) if any("rob a train" in m["content"] for m in d["messages"])
    ]
    assert len(said) == 4
    assert all(d["kind"] == "refusal" for d in said)
