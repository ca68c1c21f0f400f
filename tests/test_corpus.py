"""Text to learn from: what is read, what is kept, in which order, in parts and after a stop; and what is refused."""

import bz2
import gzip
import json
import lzma
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.corpus import Conversation, CorpusSpec, files, read
from sparsight.corpus.conversation import Unreadable
from sparsight.corpus.schemas import read_row
from sparsight.errors import BadFile, BadInput, Missing
from sparsight.records import Message

HELLO = (Message("user", "Hello"), Message("assistant", "Hi, I am Ada."))
ASKED = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi, I am Ada."}]
LMSYS = {
    "conversation_id": "33f1",
    "model": "vicuna-13b",
    "conversation": ASKED,
    "turn": 1,
    "language": "English",
    "openai_moderation": [{"flagged": False, "categories": {"hate": False}}, {"flagged": True}],
    "redacted": False,
}
ZSTD = zstandard.ZstdCompressor(write_checksum=True)  # as the command line does
PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": ZSTD.compress}
IN_ORDER = {"window": 1, "drop_duplicates": False}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def texts(words):
    return [{"text": str(word)} for word in words]


def corpus_of(path, rows, skip=0, rank=0, world=1, **knobs):
    """A corpus of these rows, in a file."""
    path = path / "corpus.jsonl"
    path.write_bytes(lines(rows))
    return read(CorpusSpec(path, **knobs), skip, rank, world)


def words_of(corpus):
    return [conversation.text for conversation in corpus]


# Rows


@pytest.mark.parametrize(
    "row",
    [
        LMSYS,
        {"messages": ASKED},
        {"messages": [{**ASKED[0], "content": [{"type": "text", "text": "Hel"}, "lo"]}, ASKED[1]]},
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi, I am Ada."}]},
        {"conversations": ASKED},
        {"conversations": [{"role": None, "content": None, "from": "human", "value": "Hello"}, ASKED[1]]},
        {"prompt": "Hello", "response": "Hi, I am Ada."},
        {"prompt": "Hello", "completion": "Hi, I am Ada."},
        {"instruction": "Hello", "input": "", "output": "Hi, I am Ada.", "text": "### Instruction: Hello"},
        {"text": None, "conversation": None, "messages": ASKED},
    ],
)
def test_a_chat_is_read_in_whatever_schema_it_comes(row):
    assert read_row(row).messages == HELLO


def test_lmsys_says_all_that_is_known_of_a_conversation():
    assert read_row(LMSYS, origin="lmsys.parquet") == Conversation(
        HELLO, None, "33f1", "English", "lmsys.parquet", "vicuna-13b", redacted=False, flagged=True
    )
    unsure = read_row({**LMSYS, "openai_moderation": [], "redacted": None, "model": float("nan"), "source": "arena"})
    assert (unsure.flagged, unsure.redacted, unsure.model, unsure.source) == (None, None, None, "arena")


def test_every_name_of_a_role_is_the_role_it_means():
    said = [(name, "x") for name in ("system", "developer", "Human", "USER", "gpt", "function_call", "observation")]
    read_back = read_row({"conversations": [{"from": name, "value": words} for name, words in said]}).messages
    roles = [message.role for message in read_back]
    assert roles == ["system", "system", "user", "user", "assistant", "assistant", "tool"]


def test_a_pair_takes_its_input_along_and_a_named_schema_is_the_one_that_is_read():
    row = {"instruction": "Translate.", "input": "chat", "output": "cat", "text": "All of it."}
    assert read_row(row).messages[0].content == "Translate.\n\nchat"
    assert read_row(row, "text").text == "All of it."
    with pytest.raises(Unreadable, match="no known keys"):
        read_row(row, "messages")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "not an object"),
        ([ASKED], "not an object"),
        ({}, "no known keys (no keys at all)"),
        ({"content": "x", "title": "y", "text": None}, "no known keys ('content', 'title')"),
        ({"text": " \n"}, "empty"),
        ({"text": 5}, "content that is no text"),
        ({"text": float("nan")}, "content that is no text"),
        ({"text": "half a pair \ud800"}, "not valid Unicode"),
        ({"messages": []}, "empty"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty"),
        ({"messages": "Hello"}, "messages that are no list"),
        ({"messages": ["Hello"]}, "a message that is no object"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "unknown role ('narrator')"),
        ({"messages": [{"role": None, "content": "x"}]}, "unknown role (NoneType)"),
        ({"messages": [{"role": "user", "content": None}]}, "content that is no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content that is no text"),
        ({"prompt": {"a": 1}, "response": "x"}, "content that is no text"),
    ],
)
def test_a_row_that_is_no_conversation_says_why(row, reason):
    with pytest.raises(Unreadable) as caught:
        read_row(row)
    assert str(caught.value).startswith(reason)


KEYS = st.sampled_from(
    ["text", "messages", "conversation", "role", "content", "from", "value", "prompt", "response", "id", "user"]
)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | KEYS | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
        max_leaves=12,
    )
)
def test_any_object_at_all_is_a_conversation_or_unreadable(row):
    try:
        conversation = read_row(row)
    except Unreadable:
        return
    assert conversation.characters
    assert conversation.id


def test_words_are_the_same_whatever_the_white_space_and_the_unicode_form():
    assert Conversation(text="caf\u00e9  au\nlait ").key == Conversation(text="cafe\u0301 au lait").key
    assert Conversation(text="Cafe").key != Conversation(text="cafe").key
    apart = [
        Conversation(messages=[Message("user", "a"), Message("user", "b")]),
        Conversation(messages=[Message("user", "a"), Message("assistant", "b")]),
        Conversation(messages=[Message("user", "a user b")]),
        Conversation(messages=[Message("user", "a\x1fuser\x1fb")]),
        Conversation(text="a"),
        Conversation(messages=[Message("user", "a")]),
    ]
    assert len({one.key for one in apart}) == 5  # one of them hides what stands between messages, as white space
    assert apart[2].key == apart[3].key
    assert Conversation(text="a").id == Conversation(text=" a").id == Conversation(text="a").key.hex()


@pytest.mark.parametrize("parts", [{}, {"messages": HELLO, "text": "x"}, {"messages": "x"}, {"text": 5}])
def test_a_conversation_is_messages_or_a_text(parts):
    with pytest.raises(BadInput, match="A conversation"):
        Conversation(**parts)


# Files


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".JSONL", ".txt"])
def test_every_kind_of_file_is_read_packed_or_not(tmp_path, kind, packing):
    rows = texts(["one", "two", "três"])
    held = {".json": json.dumps(rows).encode(), ".txt": "one\n\ntwo\n\n\ntrês".encode()}.get(kind, lines(rows))
    (tmp_path / f"some.words{kind}{packing}").write_bytes(PACKED[packing](held))
    spec = CorpusSpec(tmp_path / f"some.words{kind}{packing}", documents="paragraph", **IN_ORDER)
    assert words_of(read(spec)) == ["one", "two", "três"]


def test_parquet_is_read_with_its_nulls_and_nested_columns(tmp_path):
    rows = [{**LMSYS, "text": None}, {"text": "a story", "language": None}]
    table = pa.Table.from_pylist(rows * 70, schema=pa.Table.from_pylist([{**LMSYS, "text": "x"}]).schema)
    pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    got = list(read(CorpusSpec(tmp_path / "a.parquet", **IN_ORDER)))
    assert len(got) == 140
    assert (got[0].messages, got[0].flagged, got[0].source) == (HELLO, True, "a.parquet")
    assert got[139].text == "a story"


def test_json_may_be_an_array_one_object_or_lines(tmp_path):
    rows = texts("abc")
    for held in (json.dumps(rows, indent=2), "\n\n" + json.dumps(rows), lines(rows).decode()):
        (tmp_path / "x.json").write_text(held)
        assert words_of(read(CorpusSpec(tmp_path / "x.json", **IN_ORDER))) == ["a", "b", "c"]
    (tmp_path / "x.json").write_bytes(lines(rows) + b"broken")
    corpus = read(CorpusSpec(tmp_path / "x.json", **IN_ORDER))
    assert words_of(corpus) == ["a", "b", "c"]
    assert corpus.tally.first["not JSON"].startswith(f"{tmp_path / 'x.json'}, line 4: ")
    (tmp_path / "x.json").write_text(json.dumps({"text": "alone"}, indent=2))
    assert words_of(read(CorpusSpec(tmp_path / "x.json"))) == ["alone"]


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", ["One.\r\nStill one.\r\n\r\n \r\nTwo.\r\n"]),
        ("paragraph", ["One.\r\nStill one.", "Two."]),
        ("line", ["One.", "Still one.", "Two."]),
    ],
)
def test_a_text_file_is_cut_as_asked(tmp_path, documents, expected):
    (tmp_path / "x.txt").write_bytes("\ufeffOne.\r\nStill one.\r\n\r\n \r\nTwo.\r\n".encode())
    assert words_of(read(CorpusSpec(tmp_path / "x.txt", documents=documents, **IN_ORDER))) == expected


def test_a_folder_and_a_glob_are_read_in_order_of_their_paths(tmp_path):
    for name in ("b/2.jsonl", "a/1.jsonl", "a/z.json", ".cache/old.jsonl", "a/README.md", "c/3.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lines(texts([name])))
    assert words_of(read(CorpusSpec(tmp_path, **IN_ORDER))) == ["a/1.jsonl", "a/z.json", "b/2.jsonl", "c/3.jsonl"]
    got = list(read(CorpusSpec(f"{tmp_path}/[bc]/*.jsonl", **IN_ORDER)))
    assert [(one.text, one.source) for one in got] == [("b/2.jsonl", "2.jsonl"), ("c/3.jsonl", "3.jsonl")]


def test_broken_lines_cost_those_lines_and_are_told_by_place(tmp_path):
    good = b'{"text": "fine"}\n'
    bad = {
        b'{"text": "cut of\n': "not JSON",
        b"\xff\xfe{\x00\n": "not UTF-8",
        b"[" * 100_000 + b"\n": "not JSON",
        b'{"text": ' + b"9" * 5_000 + b"}\n": "not JSON",
        b'{"text": NaN}\n': "content that is no text (float)",
        b"null\n": "not an object",
        b'"text"\n': "not an object",
        b'{"text": {"text": {"text": "x"}}}\n': "content that is no text (dict)",
        b'{"text": "\\ud800"}\n': "not valid Unicode",
    }
    for line, reason in bad.items():
        path = tmp_path / "x.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n \n" + line + good)
        corpus = read(CorpusSpec(path, **IN_ORDER))
        assert words_of(corpus) == ["fine", "fine"]
        assert corpus.tally.rows == 3
        assert [why.startswith(f"{path}, line 4: {reason}") for why in corpus.tally.first.values()] == [True]


def test_names_that_are_no_unicode_are_spelled_out(tmp_path):
    row = {"text": "fine", "id": "\ud801", "language": "\ud800x", "source": "\udcff"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    (one,) = read(CorpusSpec(tmp_path / "x.jsonl", **IN_ORDER))
    assert (one.id, one.language, one.source) == (r"\ud801", r"\ud800x", r"\udcff")


def test_a_line_longer_than_memory_should_hold_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST", 50)
    for name, documents, held in [
        ("x.jsonl", "file", [json.dumps({"text": "b" * 200}), '{"text": "a"}', '{"text": "c"}', json.dumps("d" * 50)]),
        ("x.txt", "line", ["b" * 200, "a", "c", "d" * 51]),
        ("x.txt", "paragraph", ["b" * 200, "", "a", "", "c", "", *["d" * 20] * 3]),
    ]:
        (tmp_path / name).write_text("\n".join(held))
        corpus = read(CorpusSpec(tmp_path / name, documents=documents, **IN_ORDER))
        assert words_of(corpus) == ["a", "c"]
        assert corpus.tally.unreadable == {"a line or text over 50 bytes": 2}
    (tmp_path / "x.txt").write_text("d" * 51)
    with pytest.raises(BadFile, match="over 50 bytes"):
        list(read(CorpusSpec(tmp_path / "x.txt")))


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz", ".zst"])
def test_a_packed_file_that_breaks_off_is_an_error_and_not_the_end(tmp_path, packing):
    rows = texts(f"{i * 2654435761:x}" * 9 for i in range(5_000))
    whole = PACKED[packing](lines(rows))
    path = tmp_path / f"x.jsonl{packing}"
    half = len(whole) // 2
    for held in (
        whole[:half],
        whole[:half] + b"\x00" * 99 + whole[half + 99 :],
        whole[:12] + b"\xff" * 99 + whole[111:],
    ):
        path.write_bytes(held)
        with pytest.raises(BadFile, match="cannot be read on after") as caught:
            list(read(CorpusSpec(path, **IN_ORDER)))
        assert str(path) in str(caught.value)
    path.write_bytes(whole + whole)  # as files are joined
    assert sum(1 for _ in read(CorpusSpec(path, **IN_ORDER))) == 10_000
    path.write_bytes(b"not packed at all\n" * 9)
    with pytest.raises(BadFile, match="its beginning"):
        list(read(CorpusSpec(path)))


def test_damaged_parquet_and_json_are_errors_with_the_file_and_the_place(tmp_path):
    path = tmp_path / "x.parquet"
    pa.parquet.write_table(pa.table({"text": [f"{i} words" for i in range(5_000)]}), path, row_group_size=1_000)
    whole = path.read_bytes()
    for held in (whole[:-100], b"", b"PAR1", whole[: len(whole) // 2] + b"\xff" * 2_000 + whole[len(whole) // 2 :]):
        path.write_bytes(held)
        with pytest.raises(BadFile, match="cannot be read on as Parquet after row"):
            list(read(CorpusSpec(path)))
    (tmp_path / "x.json").write_text('[{"text": "a"},\n {"text": "b"},\n {"text": ')
    with pytest.raises(BadFile, match=r"x.json' is not JSON \(line 3\)"):
        list(read(CorpusSpec(tmp_path / "x.json")))


def test_a_parquet_row_that_is_not_utf8_is_passed_over(tmp_path):
    column = pa.array([b"fine", b"\xff\xfe", b"too"]).view(pa.string())
    pa.parquet.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
    corpus = read(CorpusSpec(tmp_path / "x.parquet", **IN_ORDER))
    assert words_of(corpus) == ["fine", "too"]
    assert corpus.tally.first == {"not UTF-8": f"{tmp_path / 'x.parquet'}, row 2: not UTF-8 (at byte 0)"}


# What is refused


def test_rows_of_another_schema_are_an_error_that_names_their_keys_and_the_known_schemas(tmp_path):
    rows = [{"title": "x", "body": "y"}] * 3
    with pytest.raises(BadFile, match=r"3 of 5 rows .* 3: .*line 1: .*'title', 'body'.* sharegpt, pairs, text"):
        list(corpus_of(tmp_path, rows + texts("ab")))
    kept = corpus_of(tmp_path, rows + texts("abc"), **IN_ORDER)
    assert words_of(kept) == ["a", "b", "c"]
    assert "3 unreadable, first" in str(kept.tally)
    with pytest.raises(BadFile, match="1 of 5 rows"):
        list(corpus_of(tmp_path, rows[:1] + texts("abcd"), most_unreadable=0))


def test_a_wrong_schema_is_noticed_before_all_is_read(tmp_path):
    corpus = corpus_of(tmp_path, [{"title": "x"}] * 5_000)
    with pytest.raises(BadFile, match="1,000 of 1,000 rows"):
        list(corpus)


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(BadFile, match="There are no rows in"):
        list(corpus_of(tmp_path, []))
    (tmp_path / "corpus.jsonl").unlink()
    (tmp_path / "notes.docx").touch()
    for source, says in [
        (tmp_path, r"no file to read in the folder .* read: \.jsonl, \.json"),
        (tmp_path / "*.jsonl", "no file to read in what matches"),
        (tmp_path / "notes.docx", r"of no kind that is read as text. There are: \.jsonl"),
        ("chats", "no file or folder 'chats' here, and it is no name of a dataset of the hub, which is owner/name"),
        ("data/chats.jsonl.gz", "no file or folder 'data/chats.jsonl.gz' here, and it is no name"),
        ("../data/chats", "no file or folder '../data/chats' here, and it is no name"),
        ("\0", "no file or folder"),
        ("x" * 5_000, "no file or folder"),
    ]:
        with pytest.raises(BadInput, match=says):
            read(CorpusSpec(source))


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"source": ""}, "source is a name, not ''"),
        ({"source": 5}, "source is a name"),
        ({"schema": "alpaca"}, "schema is one of: auto, lmsys, messages, sharegpt, pairs, text, not 'alpaca'"),
        ({"documents": []}, "documents is one of: file, paragraph, line"),
        ({"part": "test"}, "part is one of: all, train, validation"),
        ({"languages": 5}, "languages is names"),
        ({"models": [""]}, "models is names"),
        ({"hub_config": 5}, "hub_config is a name or None"),
        ({"validation": 101}, "validation is a percentage, from 0 to 100"),
        ({"validation": float("nan")}, "validation must be a finite number"),
        ({"most_unreadable": -1}, "most_unreadable is a percentage"),
        ({"window": 0}, "window is a whole number from 1 up"),
        ({"seed": -1}, "seed is a whole number from 0 to 18446744073709551615"),
        ({"split_seed": 0.5}, "split_seed is a whole number"),
        ({"least_characters": "9"}, "least_characters is a whole number"),
        ({"least_turns": 3, "most_turns": 2}, "most_turns is a whole number from 3 up"),
        ({"drop_flagged": "yes"}, "drop_flagged is True or False"),
    ],
)
def test_a_knob_that_cannot_be_meant_is_refused(knobs, says):
    with pytest.raises(BadInput, match=says):
        CorpusSpec(**{"source": "x.jsonl", **knobs})


@pytest.mark.parametrize("part", [{"skip": -1}, {"rank": 1}, {"world": 0}, {"rank": 2, "world": 2}, {"skip": 1.5}])
def test_a_part_that_there_is_not_is_refused(tmp_path, part):
    with pytest.raises(BadInput, match="is a whole number"):
        corpus_of(tmp_path, texts("abc"), **part)


def test_every_knob_says_what_it_means_and_stands_in_the_docs():
    page = (Path(__file__).parents[1] / "docs" / "corpus.md").read_text()
    for name, says in CorpusSpec.knobs().items():
        assert says
        assert re.search(rf"^\| `{name}` \|.*\| {re.escape(says)} \|$", page, re.MULTILINE), name


def test_one_name_is_as_good_as_several():
    assert CorpusSpec("x", languages="English").languages == ("English",)


# The hub


def test_a_dataset_of_the_hub_is_streamed_as_asked(tmp_path, monkeypatch):
    asked = []

    def load_dataset(*where, **how):
        asked.append((where, how))
        return datasets.IterableDataset.from_generator(lambda: iter([*texts("abc"), {"text": None}]))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    spec = CorpusSpec(
        "ada/chats", hub_config="en", hub_split="test", hub_revision="v2", hub_token="hf_secret", **IN_ORDER
    )
    corpus = read(spec)
    assert [(one.text, one.source) for one in corpus] == [("a", "ada/chats"), ("b", "ada/chats"), ("c", "ada/chats")]
    assert corpus.tally.first["no known keys"].startswith("ada/chats, row 4")
    how = {"split": "test", "revision": "v2", "token": "hf_secret", "streaming": True}
    assert asked == [(("ada/chats", "en"), how)]
    assert "hf_secret" not in repr(spec)
    assert words_of(read(spec, skip=2)) == ["c"]
    (tmp_path / "ada" / "chats").mkdir(parents=True)
    (tmp_path / "ada" / "chats" / "x.jsonl").write_bytes(lines(texts("z")))
    assert words_of(read(spec)) == ["z"]  # what is here is meant
    assert len(asked) == 2


def test_what_is_neither_here_nor_on_the_hub_is_said_to_be_neither(monkeypatch):
    with pytest.raises(BadInput, match=r"no file or folder 'ada/chats' here, and the hub's dataset .*: .+"):
        read(CorpusSpec("ada/chats"))  # by the library itself, which may not reach for the network here

    def load_dataset(*where, **how):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'ada/chats' is a gated dataset on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(BadInput, match="no file or folder 'ada/chats' here.*gated"):
        read(CorpusSpec("ada/chats"))


def test_a_hub_that_goes_away_is_an_error_with_the_row(monkeypatch):
    def rows():
        yield from texts("ab")
        raise ConnectionError("peer left\nand a page of traceback")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    with pytest.raises(BadFile, match=r"'ada/chats' cannot be read on after row 2: peer left$"):
        list(read(CorpusSpec("ada/chats")))


def test_lines_are_read_without_the_extra_and_what_needs_it_says_which(tmp_path, monkeypatch):
    for module in ("datasets", "pyarrow", "pyarrow.parquet", "zstandard"):
        monkeypatch.setitem(sys.modules, module, None)
    assert sorted(words_of(corpus_of(tmp_path, texts("abc")))) == ["a", "b", "c"]
    for name in ("x.parquet", "x.jsonl.zst"):
        (tmp_path / name).touch()
        with pytest.raises(Missing, match=r"pyarrow is not installed: pip install 'sparsight\[harvest\]'"):
            list(read(CorpusSpec(tmp_path / name)))
    with pytest.raises(Missing, match="datasets is not installed"):
        read(CorpusSpec("ada/chats"))


def test_the_room_starts_without_what_is_slow():
    code = "import sys, sparsight.corpus; print({'torch', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# Which are kept


def test_filters_drop_what_they_say_and_the_tally_says_why(tmp_path):
    chat = {"language": "english", "source": "arena", "model": "ada", "redacted": False}
    rows = [
        {**chat, "messages": ASKED},
        {**chat, "language": "French", "messages": ASKED},
        {"text": "a text whose language nobody knows"},
        {**chat, "source": "elsewhere", "messages": ASKED},
        {**chat, "model": "bob", "messages": ASKED},
        {**chat, "redacted": True, "messages": ASKED},
        {**chat, "openai_moderation": [{"flagged": True}], "messages": ASKED},
        {**chat, "messages": ASKED[:1]},
        {**chat, "messages": ASKED * 9},
        {**chat, "messages": ASKED * 3},
        {**chat, "messages": [ASKED[1]] * 3},
        {**chat, "messages": ASKED},
        {**chat, "messages": "broken"},
    ]
    knobs = {"languages": ["English", "Dutch"], "sources": "arena", "models": "ada", "least_turns": 1, "most_turns": 2}
    knobs |= {"drop_redacted": True, "drop_flagged": True, "least_characters": 10, "most_characters": 100}
    corpus = corpus_of(tmp_path, rows, **knobs)
    assert [one.messages for one in corpus] == [HELLO]
    assert corpus.tally.dropped == {
        "language": 2, "source": 1, "model": 1, "redacted": 1, "flagged": 1, "too few characters": 1,
        "too many characters": 1, "too many turns": 1, "too few turns": 1, "duplicate": 1,
    }  # fmt: skip
    assert (corpus.tally.rows, corpus.tally.kept, corpus.tally.unreadable.total()) == (13, 1, 1)
    assert str(corpus.tally).startswith("13 rows; 1 kept; 2 dropped: language; 1 dropped: ")
    assert len(list(corpus_of(tmp_path, rows, drop_duplicates=False))) == 12


def test_a_filter_keeps_what_lies_on_its_bounds_and_what_is_not_known_to_be_bad(tmp_path):
    rows = [{"messages": ASKED, "redacted": None, "openai_moderation": []}]
    exactly = {"least_characters": 18, "most_characters": 18, "least_turns": 1, "most_turns": 1}
    assert len(list(corpus_of(tmp_path, rows, drop_redacted=True, drop_flagged=True, **exactly))) == 1


def test_a_duplicate_of_what_was_dropped_is_no_duplicate(tmp_path):
    rows = [{"text": "x", "id": "a", "redacted": True}, {"text": "x", "id": "b"}, {"text": " x ", "id": "c"}]
    corpus = corpus_of(tmp_path, rows, drop_redacted=True)
    assert [one.id for one in corpus] == ["b"]
    assert corpus.tally.dropped == {"redacted": 1, "duplicate": 1}


# Order, parts, and going on

ROWS = st.lists(st.integers(0, 12).map(lambda i: {"text": f"words {i}"}) | st.just({"text": None}), min_size=1)
KNOBS = st.fixed_dictionaries(
    {
        "window": st.integers(1, 12),
        "seed": st.integers(0, 3),
        "drop_duplicates": st.booleans(),
        "part": st.sampled_from(["all", "train", "validation"]),
        "validation": st.sampled_from([0, 30, 50, 100]),
        "most_unreadable": st.just(100),
    }
)


def placed(corpus):
    return [(one.position, one.id, one.text) for one in corpus]


@given(ROWS, KNOBS)
@settings(max_examples=60)
def test_no_words_come_twice_and_none_are_lost(tmp_path, rows, knobs):
    words = [row["text"] for row in rows if row["text"]]
    got = words_of(corpus_of(tmp_path, rows, **{**knobs, "part": "all"}))
    assert Counter(got) == (Counter(set(words)) if knobs["drop_duplicates"] else Counter(words))


@given(ROWS, KNOBS, st.integers(0, 40))
@settings(max_examples=60)
def test_reading_some_and_then_the_rest_is_reading_all(tmp_path, rows, knobs, some):
    whole = corpus_of(tmp_path, rows, **knobs)
    expected = placed(whole)
    begun = list(islice(corpus_of(tmp_path, rows, **knobs), some))
    rest = corpus_of(tmp_path, rows, skip=begun[-1].position if begun else 0, **knobs)
    assert placed(begun) + placed(rest) == expected
    assert rest.tally == whole.tally


@given(ROWS, KNOBS, st.integers(1, 5), st.integers(0, 20))
@settings(max_examples=60)
def test_processes_read_disjoint_parts_whose_union_is_the_whole(tmp_path, rows, knobs, world, skip):
    skip = min(skip, len(rows))
    whole = corpus_of(tmp_path, rows, skip=skip, **knobs)
    expected = placed(whole)
    parts = [corpus_of(tmp_path, rows, skip, rank, world, **knobs) for rank in range(world)]
    assert sorted(one for part in parts for one in placed(part)) == sorted(expected)
    assert sum(part.tally.kept for part in parts) == whole.tally.kept
    assert sum(part.tally.dropped["duplicate"] for part in parts) == whole.tally.dropped["duplicate"]
    for part in parts:
        assert part.tally.rows == part.tally.kept + part.tally.dropped.total() + part.tally.unreadable.total()


@given(st.permutations(range(12)), st.integers(0, 12), st.integers(0, 3), st.floats(0, 100), st.floats(0, 100))
@settings(max_examples=60)
def test_the_split_of_a_conversation_depends_on_nothing_but_its_words(tmp_path, order, others, seed, fewer, more):
    def held_out(words, percent, **knobs):
        spec = {"part": "validation", "validation": percent, "split_seed": seed, **knobs}
        return set(words_of(corpus_of(tmp_path, texts(words), **spec)))

    fewer, more = sorted((fewer, more))
    some = held_out(range(12), more)
    assert held_out([*order, *range(100, 100 + others)], more, window=5, seed=7) & set(map(str, range(12))) == some
    assert held_out(range(12), fewer) <= some
    train = set(words_of(corpus_of(tmp_path, texts(order), part="train", validation=more, split_seed=seed)))
    assert train | some == set(map(str, range(12)))
    assert not train & some


def test_the_split_and_the_processes_get_their_shares_independently(tmp_path):
    rows = texts(range(4_000))
    validation = {"part": "validation", "validation": 10}
    held = [set(words_of(corpus_of(tmp_path, rows, rank=rank, world=4, **validation))) for rank in range(4)]
    assert all(70 <= len(part) <= 130 for part in held)
    assert 340 <= sum(map(len, held)) <= 460
    other = set(words_of(corpus_of(tmp_path, rows, split_seed=1, **validation)))
    assert len(other & set().union(*held)) < 80  # 40 of 4,000 by chance


def test_what_was_split_and_shuffled_once_always_is(tmp_path):
    rows = texts(range(20))
    assert words_of(corpus_of(tmp_path, rows, part="validation", validation=20)) == ["9", "19", "7", "12", "11", "14"]
    assert words_of(corpus_of(tmp_path, rows, rank=1, world=4)) == ["4", "5", "6", "17", "2", "1"]
    assert words_of(corpus_of(tmp_path, rows, window=5))[:10] == ["4", "3", "0", "2", "1", "5", "9", "6", "8", "7"]
    assert Conversation(text="Hello").id == "21b50bc26d2eb9a716b65bc0a1254453"
    assert Conversation(HELLO[:1]).id == "49259f1a81e1f3dadfe72df3359b146d"


def test_a_shuffle_is_whole_where_the_window_holds_all_and_else_within_it(tmp_path):
    rows = texts(range(600))
    whole = [int(word) for word in words_of(corpus_of(tmp_path, rows))]
    assert sorted(whole) == list(range(600)) != whole
    moved = [abs(place - number) for place, number in enumerate(whole)]
    assert 170 < sum(moved) / 600 < 230  # a third of the length, as of any whole shuffle
    within = [int(word) for word in words_of(corpus_of(tmp_path, rows, window=50))]
    assert all(place // 50 == number // 50 for place, number in enumerate(within))
    assert within != sorted(within)
    assert words_of(corpus_of(tmp_path, rows, seed=1)) != words_of(corpus_of(tmp_path, rows))
    assert words_of(corpus_of(tmp_path, rows, window=1)) == [str(number) for number in range(600)]
    corpus = corpus_of(tmp_path, rows)
    assert words_of(corpus) == words_of(corpus)


def test_going_on_in_a_source_that_has_become_shorter_is_an_error(tmp_path):
    assert list(corpus_of(tmp_path, texts("abc"), skip=3)) == []
    with pytest.raises(BadFile, match="has 3 rows, and 4 were read before"):
        list(corpus_of(tmp_path, texts("abc"), skip=4))
