"""Settings: from a file, from the command line, and back to a file, with nothing lost and nothing misread."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparsight.config import as_toml, knob, knobs, read_toml, resolve
from sparsight.corpus.spec import CorpusSpec
from sparsight.errors import BadFile, BadInput


@dataclass(frozen=True)
class Baking:
    """Settings of every type."""

    heat: float = knob(180.0, "temperature of the oven, in degrees")
    eggs: int = knob(3, "how many eggs")
    vegan: bool = knob(False, "without the eggs")
    name: str = knob("cake", "what it is called")
    note: str | None = knob(None, "a word\nof the baker")
    most: int | None = knob(5, "at most so many guests")
    layers: tuple[str, ...] = knob((), "what is between")
    sizes: tuple[int, ...] = knob((16,), "diameters, in centimetres")
    box: tuple[int, int] = knob((1, 2), "width and height")
    finish: Literal["glaze", "sugar"] = knob("glaze", "what is on top")
    where: int | str = knob("oven", "a shelf's number, or a place")
    secret: str | None = knob(None, "the recipe of the grandmother", repr=False)

    def __post_init__(self) -> None:
        if self.heat > 300:
            raise BadInput(f"heat is at most 300, not {self.heat}.")


@dataclass(frozen=True)
class Guests:
    """More settings."""

    count: int = knob(0, "how many come")


SECTIONS = {"baking": Baking, "guests": Guests, "corpus": CorpusSpec}


def baked(*overrides: str, **values) -> Baking:
    return resolve(SECTIONS, {"baking": values}, overrides)["baking"]


def test_a_file_gives_what_it_says_and_defaults_for_the_rest():
    made = resolve(SECTIONS, {"baking": {"heat": 200, "layers": ["jam", "cream"]}, "corpus": {"source": "a.txt"}})
    assert made == {"baking": Baking(heat=200.0, layers=("jam", "cream")), "corpus": CorpusSpec("a.txt")}
    assert type(made["baking"].heat) is float
    assert resolve(SECTIONS, {}) == {}


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("baking.heat=91", "heat", 91.0),
        ("baking.heat=1e-4", "heat", 1e-4),
        ("baking.eggs=1e3", "eggs", 1000),
        ("baking.eggs=1_000", "eggs", 1000),
        ("baking.vegan=true", "vegan", True),
        ("baking.name=model.layers.19", "name", "model.layers.19"),
        ("baking.name=owner/name", "name", "owner/name"),
        ("baking.name=2020-01-01", "name", "2020-01-01"),
        ("baking.name=12", "name", "12"),
        ("baking.name=none", "name", "none"),
        ("baking.name='12'", "name", "12"),
        ("baking.name=", "name", ""),
        ("baking.name=a=b", "name", "a=b"),
        ("baking.name=1\nb = 2", "name", "1\nb = 2"),
        ("baking.note=none", "note", None),
        ("baking.most=none", "most", None),
        ("baking.sizes=[16, 32]", "sizes", (16, 32)),
        ("baking.sizes=16", "sizes", (16,)),
        ("baking.layers=jam", "layers", ("jam",)),
        ("baking.layers=7", "layers", ("7",)),
        ('baking.layers=["jam", "cream"]', "layers", ("jam", "cream")),
        ("baking.box=[3, 4]", "box", (3, 4)),
        ("baking.finish=sugar", "finish", "sugar"),
        ("baking.where=2", "where", 2),
        ("baking.where=cellar", "where", "cellar"),
        (" baking.eggs = 4 ", "eggs", 4),
    ],
)
def test_a_setting_is_read_as_a_person_types_it(line, key, value):
    found = getattr(baked(line, note="x"), key)
    assert found == value
    assert type(found) is type(value)


def test_the_last_word_counts_and_one_for_a_list_is_for_all_of_it():
    assert baked("baking.eggs=4", "baking.eggs=5", eggs=1).eggs == 5
    made = resolve(SECTIONS, {"baking": [{"eggs": 1}, {"name": "pie"}]}, ["baking.heat=90"])
    assert made["baking"] == (Baking(eggs=1, heat=90.0), Baking(name="pie", heat=90.0))
    assert resolve(SECTIONS, {}, ["guests.count=2"]) == {"guests": Guests(count=2)}


@pytest.mark.parametrize(
    ("overrides", "values", "says"),
    [
        ([], {"egs": 3}, "No setting 'egs' in [baking]. Did you mean 'eggs'? There are: heat, eggs, vegan"),
        (["bakin.eggs=3"], {}, "No section 'bakin'. Did you mean 'baking'? There are: baking, guests, corpus."),
        (["baking.xyz=3"], {}, "No setting 'xyz' in [baking]. There are: heat"),
        ([], {"eggs": "three"}, "baking.eggs is a whole number, not 'three'. It is: how many eggs."),
        ([], {"eggs": 2.5}, "baking.eggs is a whole number"),
        ([], {"eggs": True}, "baking.eggs is a whole number"),
        ([], {"eggs": math.inf}, "baking.eggs is a whole number"),
        ([], {"heat": 10**400}, "baking.heat is a number"),
        ([], {"heat": None}, "baking.heat is a number"),
        ([], {"vegan": 1}, "baking.vegan is true or false, not '1'. It is: without the eggs."),
        ([], {"name": 3}, "baking.name is text"),
        ([], {"most": "many"}, "baking.most is a whole number or none"),
        ([], {"sizes": [16, "x"]}, "baking.sizes is one or several of: whole number"),
        ([], {"box": [1]}, "baking.box is 2 of: whole number"),
        ([], {"finish": "cream"}, "baking.finish is one of: glaze, sugar, not 'cream'"),
        ([], {"heat": 301}, "[baking] heat is at most 300"),
        (["baking.layers=[jam]"], {}, "baking.layers is one or several of: text, not '[jam]'"),
        (["baking.vegan=yes"], {}, "baking.vegan is true or false, not 'yes'"),
        (["baking.eggs"], {}, "Cannot read the setting 'baking.eggs'. Write section.key=value"),
        (["eggs=3"], {}, "Cannot read the setting 'eggs=3'"),
        (["corpus.window=3"], {}, "[corpus] does not say source: a file, a folder, a glob"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_could_be(overrides, values, says):
    with pytest.raises(BadInput) as caught:
        baked(*overrides, **values)
    assert says in str(caught.value)


def test_a_section_that_is_no_table_is_refused():
    for value in (3, [3], []):
        with pytest.raises(BadInput, match="is a table of settings"):
            resolve(SECTIONS, {"baking": value})


def test_a_file_that_is_no_toml_is_named(tmp_path):
    (tmp_path / "a.toml").write_text("x = [")
    (tmp_path / "b.toml").write_bytes(b"x = '\xff'")
    for name in ("a.toml", "b.toml", "absent.toml"):
        with pytest.raises(BadFile, match=name):
            read_toml(tmp_path / name)


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
whole = st.integers(-(2**70), 2**70)
bakings = st.builds(
    Baking,
    heat=st.floats(max_value=300, allow_nan=False),
    eggs=whole,
    vegan=st.booleans(),
    name=words,
    note=st.none() | words.filter(lambda text: text != "none"),
    most=st.none() | whole,
    layers=st.lists(words, max_size=3).map(tuple),
    sizes=st.lists(whole, max_size=3).map(tuple),
    box=st.tuples(whole, whole),
    finish=st.sampled_from(["glaze", "sugar"]),
    where=whole | words,
)


@example(one=Baking(name='\x7f"\\\r\n\t\x00☕', heat=-math.inf), many=(Baking(heat=-1e300),), about="")
@given(one=bakings, many=st.lists(bakings, min_size=1, max_size=3).map(tuple), about=words)
def test_what_is_written_is_read_back_the_same(tmp_path, one, many, about):
    for settings in ({"baking": one, "guests": Guests()}, {"baking": many}):
        (tmp_path / "a.toml").write_bytes(as_toml(settings, about).encode())
        read = read_toml(tmp_path / "a.toml")
        assert read.pop("about", "") == about
        assert resolve(SECTIONS, read) == settings


@given(one=bakings)
def test_every_line_explains_its_knob(one):
    text = as_toml({"baking": one})
    assert all(f"  # {' '.join(f.metadata['says'].split())}\n" in text for f in fields(Baking) if f.repr)


def test_secrets_are_not_written_and_what_cannot_be_is_refused():
    assert "hub_token" in knobs(CorpusSpec)
    text = as_toml({"corpus": CorpusSpec("a.txt", hub_token="hf_123"), "baking": Baking(secret="salt")})
    assert "hf_123" not in text
    assert "hub_token" not in text
    assert "salt" not in text
    with pytest.raises(BadInput, match="would be read as no value"):
        as_toml({"baking": Baking(note="none")})
    with pytest.raises(BadInput, match="TOML holds Unicode"):
        as_toml({"baking": Baking(name="\udce9")})
