"""The verb that labels, with a language model elsewhere: from an atlas to scores, by a server that can read."""
# ruff: noqa: F811

import json
import re
from collections import Counter

import pytest
from test_label import NAMES, TOPIC, atlas, planted, words  # noqa: F401
from test_label_clients import KEY, server, texts  # noqa: F401

from sparsight.atlas.asked import spent
from sparsight.cli.desk import main
from sparsight.label import prompts

MARKED = r"<<\s*(.*?)\s*>>"


def reader(body):
    """A model that calls a feature by the word that is marked most, and judges by that word."""
    shared, asked = texts(body)
    if shared == prompts.EXPLAIN:
        ((word, _),) = Counter(re.findall(MARKED, asked)).most_common(1)
        return json.dumps({"label": f"the word {word}", "confidence": 0.9})
    word = json.loads(re.search(r'^It fires on: (".*")$', asked, re.MULTILINE)[1]).removeprefix("the word ")
    rows = re.findall(r"^\d+\. (.*)$", asked, re.MULTILINE)
    if shared == prompts.FUZZ:
        return "".join(str(int(word in re.findall(MARKED, row))) for row in rows)
    return "".join(str(int(word in re.findall(r"[^\s\"]+", row))) for row in rows)


@pytest.fixture
def ask(atlas, words, server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    words.save_pretrained(tmp_path / "words")
    server.reply = reader

    def run(*more, features="1,3,4,5"):
        options = ["--model", str(tmp_path / "words"), "--features", features, "--bootstrap", "20"]
        options += ["--ask", "a-model", "--base-url", server.url, "--key-env", "SOME_KEY", "--backoff", "0.01"]
        code = main(["label", str(atlas.folder), "--method", "openai", *options, *more])
        return code, capsys.readouterr()

    return run


def test_labels_and_scores_come_from_an_endpoint(ask, atlas):
    code, told = ask()
    assert code == 0, told.err
    sea = atlas.label(NAMES["sea"])
    assert (sea.text, sea.method, sea.model, sea.confidence) == ("the word sea", "openai", "a-model", 0.9)
    assert sea.scores["detection"].value > 0.9
    assert sea.scores["fuzzing"].value > 0.9
    assert f"{spent(atlas).prompts:,} (" in told.out
    assert ask()[0] == 0
    assert "had a label already" in told.out


def test_nothing_of_a_held_out_document_is_in_a_prompt_for_a_label(ask, atlas, server, words):
    ask(features="4,5,6")
    held_out = [words.decode(atlas.tokens[d.start : d.start + d.length]) for d in atlas.documents() if d.held_out]
    open_ones = [words.decode(atlas.tokens[d.start : d.start + d.length]) for d in atlas.documents() if not d.held_out]

    def runs(text):
        pieces = text.split()
        return {" ".join(pieces[i : i + 6]) for i in range(len(pieces) - 5)}

    theirs = set().union(*map(runs, held_out)) - set().union(*map(runs, open_ones))
    asked = [texts(body) for _, _, body in server.seen]
    shown = {shared: set().union(*(runs(re.sub("<<|>>", "", text)) for s, text in asked if s == shared))
             for shared in (prompts.EXPLAIN, prompts.DETECT)}  # fmt: skip
    assert not shown[prompts.EXPLAIN] & theirs
    assert shown[prompts.DETECT] & theirs, "judges see those, and these runs of words tell"


def test_a_dry_run_foresees_what_a_run_asks(ask, atlas, server):
    prices = ("--price-in", "1", "--price-out", "2")
    code, told = ask("--dry-run", *prices)
    assert code == 0, told.err
    assert not server.seen
    said = re.match(r"4 features, ([\d,]+) prompts: ([\d,]+) tokens in, by the tokenizer of .*, \$([\d.]+)", told.out)
    assert said, told.out
    foreseen = int(said[1].replace(",", ""))
    assert ask(*prices)[0] == 0
    assert abs(len(server.seen) - foreseen) <= 2, "but for a control on one of ten features, and what is the same"


def test_a_budget_ends_a_run_in_one_line_and_the_rest_is_done_with_a_higher_one(ask, atlas, server):
    prices = ("--price-in", "10", "--price-out", "10")
    server.usage = lambda body: (1000, 10)
    code, told = ask("--budget", "0.1", *prices)
    assert code == 1
    assert re.search(r"sparsight: The next prompt may cost \$[\d.]+, and of the budget of \$0.10 there is", told.err)
    sent = len(server.seen)
    assert 0 < spent(atlas).dollars <= 0.1
    assert ask("--budget", "10", *prices)[0] == 0
    assert len({texts(body)[1] for _, _, body in server.seen}) == len(server.seen) > sent, "and nothing twice"
    assert sorted(atlas.all_labels()) == [1, 3, 4, 5]


def test_answers_that_are_nonsense_are_told(ask, atlas, server):
    server.reply = lambda body: "I would rather talk about " + TOPIC[0]
    code, told = ask()
    assert code == 0
    assert re.search(r"answers without a label that are nonsense\s+4", told.out)
    assert not atlas.all_labels()


def test_what_is_missing_is_said_in_one_line(ask, capsys, atlas):
    for options, told in (
        (["--method", "openai"], "Which model? Say model (--ask)"),
        (["--method", "anthropic", "--ask", "m"], "set the environment variable ANTHROPIC_API_KEY"),
        (["--method", "embedded", "--dry-run"], "--dry-run is for methods that send prompts; embedded sends none"),
    ):
        assert main(["label", str(atlas.folder), "--model", str(atlas.folder.parent / "words"), *options]) == 1
        assert told in capsys.readouterr().err
