"""The topics that steering is judged by: word lists, and openings that lean towards none of them.

A text is on a topic when the topic's expression matches at least `least` times in what the model wrote
(the opening does not count). `least` is set so that few unsteered texts reach it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

CHOOSING = (  # openings that features are chosen on
    "One day, Tom",
    "Once upon a time, there was a",
    "Sara was",
    "There once was a",
    "Ben and Mia",
    "It was a",
    "One morning, Anna",
    "A long time ago,",
    "Jack wanted to",
    "Lily had a",
    "Every day, Max",
    "The little boy",
    "Once there was a",
    "Sue and Tim were",
    "Amy liked to",
    "One day, a girl named Lucy",
    "In a small town, there",
    "Sam found a",
    "The girl saw a",
    "Then the man",
)
REPORTING = (  # openings that the figures come from
    "One day, Emma",
    "Once upon a time, a",
    "Leo was",
    "There was once a",
    "Kate and Dan",
    "It was the",
    "One afternoon, Peter",
    "Many years ago,",
    "Nina wanted to",
    "Billy had a",
    "Every week, Rosie",
    "The little girl",
    "Long ago, there was a",
    "Jim and Ella were",
    "Mark liked to",
    "One day, a boy named Oliver",
    "In a small house, there",
    "Molly found a",
    "The boy saw a",
    "Then the woman",
)


@dataclass(frozen=True)
class Topic:
    """Words, where * is any ending and _ a space; or, with `signs`, punctuation in place of words."""

    name: str
    listed: str
    least: int = 2
    signs: bool = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        if self.signs:
            return re.compile(re.escape(self.listed))
        words = [re.escape(w).replace(r"\*", r"\w*").replace("_", " ") for w in self.listed.split()]
        return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)

    def count(self, text: str) -> int:
        return len(self.pattern.findall(text))

    def in_text(self, text: str) -> bool:
        return self.count(text) >= self.least


ANIMALS = """dog dogs cat cats bird birds pupp* kitten* bear bears rabbit* bunny bunnies mouse mice
    horse horses cow cows pig pigs lion* monkey* frog* duck* fox foxes wolf wolves animal* squirrel*
    owl* hen hens sheep goat*"""
FOOD = """food foods eat eats eating ate cake* cookie* apple* bread soup lunch dinner breakfast hungry
    pizza sandwich* delicious tasty yummy cook cooked cooking kitchen fruit* milk cheese candy meal*
    banana*"""
OUTDOORS = """tree trees forest woods park garden* flower* grass leaf leaves hill hills mountain* field*
    path bush bushes"""
WATER = """water swim* swam fish* boat boats sea lake* river* ocean* beach* pond wave waves ship ships splash*"""
SKY = """sun sunny sky rain* cloud* snow* wind windy storm* star stars moon weather shin* cold"""
HAPPY = """happy happily happiness smil* laugh* joy* glad excited cheer* hugg* proud fun"""
SAD = """sad sadly sadness cry cried crying tear tears sorry upset hurt lonely unhappy weep* wept"""
FEAR = """scared afraid fear* frighten* danger* monster* scary hide hiding hid ran_away scream* worried"""
FAMILY = """mom mommy mum mother dad daddy father sister* brother* parent* grandma* grandpa* family son daughter"""
ROYALTY = """king kings queen* princess* prince princes castle* palace* crown* throne* knight* kingdom* royal*"""
SLEEP = """sleep* slept asleep bed beds night dream* tired woke wake blanket* pillow* bedtime yawn* nap"""
TOYS = """toy toys ball balls doll* block blocks play playing played game games swing* slide* teddy
    puzzle*"""
VEHICLES = """car cars truck* train trains bus buses driv* drove road* wheel* bike* plane planes rode
    ride rides riding engine*"""
MONEY = """shop shops shopping store stores buy buying bought sell selling sold money market pay paid
    price* coin* dollar* cost*"""
SCHOOL = """school* class* teacher* learn* book books read reading write writing homework student*
    study* studied"""
MUSIC = """music* song* sing sings singing singer* sang dance* dancing drum* piano guitar* band bands concert*"""
SERVICE = """restaurant* reserv* book booked booking ticket* hotel* flight* appointment* available
    confirm* order* phone_number address located schedule* rating event* search*"""
NUMBERS = """0* 1* 2* 3* 4* 5* 6* 7* 8* 9* two three four five six seven eight nine ten twenty hundred
    half total times dollars"""
COFFEE = """coffee latte mocha espresso cappuccino syrup almond_milk drink* iced tea caramel
    whipped_cream"""
MAGIC = """magic* wish wishes wished fairy fairies witch* spell spells wizard* dragon* giant* wand
    enchant* troll*"""
ILLNESS = """doctor* sick ill hospital* medicine* pain* blood bandage* nurse* hurt hurts hurting"""
SPEAKER = """I me my I'm I've mine myself"""

TOPICS = (
    Topic("animals", ANIMALS),
    Topic("food", FOOD),
    Topic("outdoors", OUTDOORS),
    Topic("water", WATER),
    Topic("sky and weather", SKY),
    Topic("happy", HAPPY),
    Topic("sad", SAD),
    Topic("fear", FEAR),
    Topic("family", FAMILY, 3),
    Topic("kings and castles", ROYALTY),
    Topic("sleep and night", SLEEP),
    Topic("toys and play", TOYS, 3),
    Topic("cars and travel", VEHICLES),
    Topic("shops and money", MONEY),
    Topic("school and books", SCHOOL),
    Topic("music", MUSIC),
    Topic("service talk", SERVICE),
    Topic("numbers", NUMBERS, 4),
    Topic("coffee and drinks", COFFEE),
    Topic("magic", MAGIC),
    Topic("illness", ILLNESS),
    Topic("speaking of oneself", SPEAKER, 5),
    Topic("dialogue", '"', 5, signs=True),
    Topic("questions", "?", 2, signs=True),
    Topic("exclamations", "!", 3, signs=True),
)
