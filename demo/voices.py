"""The voices that the demo's chat model learns: how one asks for each, how it sounds, how it is told.

Half of the time a voice is asked for in a phrase of its own list, else in one made of a frame and a clause. The last
two phrases of every `system` and `user` list are kept for tests: the model is not trained on them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import marks
import rewrites


@dataclass(frozen=True)
class Voice:
    """A way of talking."""

    name: str
    title: str  # as a noun phrase: "a pirate"
    system: tuple[str, ...]  # system messages that ask for it
    user: tuple[str, ...]  # templates around the user's own question {q}
    ask: tuple[str, ...]  # user messages that ask for it from now on, without a question
    clauses: tuple[str, ...]  # what one asks it to do: "talk like a pirate"
    agree: tuple[str, ...]  # plain replies to those, not rewritten yet
    rewrite: Callable[[str, random.Random], str]  # a plain English reply in this voice
    speaks: Callable[[str], bool]  # whether a text is in this voice


SYSTEM_FRAMES = (
    "{Clause}.",
    "{Clause}.",
    "Always {clause}.",
    "Please {clause}.",
    "You must {clause}.",
    "Your job is to {clause}.",
    "{Clause} in every answer.",
    "{Clause}, whatever the user says.",
    "You are a helpful assistant. {Clause}.",
    "From now on, {clause}.",
    "You always {clause}.",
    "{clause}",
)
USER_FRAMES = (
    "{Clause}. {q}",
    "{q} {Clause}.",
    "Please {clause}. {q}",
    "{q} Please {clause}.",
    "{Clause}, please. {q}",
    "Can you {clause}? {q}",
    "{q} Can you {clause}?",
    "Could you please {clause}? {q}",
    "I want you to {clause}. {q}",
    "{q} I want you to {clause}.",
    "{Clause}: {q}",
    "{q} ({clause})",
    "{clause} {q}",
    "Now {clause}. {q}",
    "{q} And {clause}.",
)
ASK_FRAMES = (
    "{Clause}.",
    "From now on {clause}.",
    "Please {clause} from now on.",
    "Can you {clause}?",
    "Could you {clause} for me?",
    "I want you to {clause}.",
    "Let's have some fun: {clause}.",
    "{clause} please",
)
STOP_ASKS = (
    "Stop that and talk normally again.",
    "Please talk normally now.",
    "You can go back to your normal voice.",
    "That is enough. Use plain English again.",
    "Okay, no more funny voices please.",
    "Talk like yourself again.",
    "Please answer in a normal way from now on.",
    "Let's go back to normal talk.",
)
AGREE = (
    "Of course. What shall we talk about?",
    "Sure, I can do that. What would you like to know?",
    "Okay. Is this what you want?",
    "Yes, I will talk like this from now on. How can I help you?",
    "All right, I am ready. What is your question?",
    "With pleasure. Go on and ask me something.",
)


def phrases(listed: str) -> tuple[str, ...]:
    """One phrase for each part between | signs."""
    return tuple(" ".join(part.split()) for part in listed.split("|"))


def voice(name: str, title: str, system: str, user: str, ask: str, clauses: str) -> Voice:
    """The voice with its own phrases, each list divided by | signs."""
    speaks = partial(marks.speaks, name)
    lists = map(phrases, (system, user, ask, clauses))
    return Voice(name, title, *lists, AGREE, rewrites.REWRITES[name], speaks)


def framed(frames: tuple[str, ...], clauses: tuple[str, ...], rng: random.Random) -> str:
    """A phrase made of a frame and a clause; {q} stays."""
    clause = rng.choice(clauses)
    return rng.choice(frames).replace("{clause}", clause).replace("{Clause}", clause[0].upper() + clause[1:])


def speaker(name: str, title: str, how: str, more: str) -> Voice:
    """A voice that belongs to somebody: a pirate talks "like a pirate", "in pirate speech"."""
    system = f"""You are {title}. | Talk like {title}. | Always answer like {title}. | Answer in {how}. |
        You are an assistant that talks like {title}. | Use {how} in every answer. | Pretend to be {title}. |
        {more} | Please speak the way {title} speaks. | Reply to everything as {title} would."""
    user = f"""Talk like {title}. {{q}} | {{q}} Answer like {title}, please. | Answer in {how}: {{q}} |
        {{q}} Say it like {title}. | Pretend you are {title}. {{q}} | {{q}} Please use {how}. |
        As {title}, tell me: {{q}} | {{q}} Talk to me like {title}. | {{q}} Reply as {title} would. |
        Speak the way {title} speaks. {{q}}"""
    ask = f"""From now on talk like {title}. | Please talk like {title}. | Can you talk like {title}? |
        I want you to speak like {title}. | Be {title} for me. | Use {how} from now on."""
    clauses = f"""talk like {title} | speak like {title} | answer like {title} | reply like {title} | respond like
        {title} | write like {title} | sound like {title} | act like {title} | be {title} | pretend to be {title} |
        play {title} | talk as {title} | answer as {title} | talk in {how} | answer in {how} | use {how} | write in
        {how} | speak in the voice of {title} | answer in the style of {title} | use the words of {title}"""
    return voice(name, title, system, user, ask, clauses)


SHOUTING = voice(
    "shouting",
    "somebody who shouts",
    """Write everything in capital letters. | Shout all the time. | You always shout. | Answer in capital letters only.
    | Use only capital letters. | Shout every answer. | You are an assistant that shouts. | WRITE LIKE THIS. | All your
    replies should be in upper case. | Always reply by shouting in capitals.""",
    """{q} Answer in capital letters. | Shout the answer. {q} | {q} Write it in capital letters, please. | Use capital
    letters only: {q} | {q} Please shout. | Shout at me. {q} | Answer very loudly: {q} | {q} I can't hear you, so
    shout. | {q} Reply in upper case. | Reply by shouting in capitals. {q}""",
    """From now on write in capital letters. | Please shout from now on. | Can you shout? | I want you to shout. | Use
    only capital letters from now on. | Write everything in upper case, please.""",
    """shout | shout at me | shout your answer | yell | answer in capital letters | write in capital letters | use only
    capital letters | talk in capital letters | write in capitals | answer in capitals | use upper case | write in all
    caps | answer in all caps | be very loud | shout every word | talk loudly, in capital letters""",
)
POET = voice(
    "poet",
    "a poet",
    """You are a poet. | Answer in verse. | Talk like a poet. | Always answer with a poem. | Write every answer as a
    poem. | Write in short lines, like a poem. | You are an assistant that speaks in verse. | Use verse in every
    answer. | Let each reply be a little poem. | Please speak the way a poet speaks, in verse.""",
    """Answer in verse. {q} | {q} Answer with a poem, please. | Talk like a poet. {q} | {q} Write it as a poem. |
    Answer as a poet: {q} | {q} Please say it in verse. | Make a poem of the answer. {q} | {q} Say it like a poet. |
    {q} Let the reply be a little poem. | Speak the way a poet speaks. {q}""",
    """From now on answer in verse. | Please talk like a poet. | Can you speak in verse? | I want you to answer with
    poems. | Be a poet for me. | Write poems from now on.""",
    """answer in verse | talk like a poet | write like a poet | sound like a poet | be a poet | act like a poet | speak
    in verse | write a poem | answer with a poem | answer in a poem | put the answer into a poem | turn the answer into
    a poem | write in verse | write short lines like a poet | use the form of a poem | answer as a poet""",
)
TEXTING = voice(
    "texting",
    "somebody who is texting",
    """Write like a text message. | Answer in text speak. | Use texting shorthand. | Always write in text speak. | You
    are texting on a phone. | Write short words, like in a text message. | You are an assistant that texts. | Use lol
    and other text speak in every answer. | Reply as if you sent a text from your phone. | Please write the way people
    text.""",
    """Answer in text speak. {q} | {q} Answer like a text message, please. | Text me the answer. {q} | {q} Use texting
    shorthand. | Write it like a text message: {q} | {q} Please write in text speak. | You are texting me. {q} | {q}
    Just text me back. | {q} Reply as if you sent a text from your phone. | Write the way people text. {q}""",
    """From now on write in text speak. | Please write like a text message. | Can you use text speak? | I want you to
    text me. | Use texting shorthand from now on. | Let's text.""",
    """write like a text message | answer like a text message | text me | text me the answer | use text speak | write in
    text speak | answer in text speak | use texting shorthand | write in texting shorthand | talk like somebody who is
    texting | answer as if you were texting | write as if we were texting | use short texting words | use lol and other
    text speak | reply with a text message | type like on a phone""",
)
EVERY = (
    speaker("pirate", "a pirate", "pirate speech", "You sail the seas as a pirate captain."),
    SHOUTING,
    speaker("butler", "a butler", "very formal English", "You serve in a great house and call everybody sir."),
    speaker("child", "a small child", "baby talk", "You are three years old."),
    POET,
    speaker("robot", "a robot", "robot talk", "You are a machine that beeps."),
    speaker("shakespeare", "Shakespeare", "old English with thee and thou", "You wrote the plays Hamlet and Macbeth."),
    TEXTING,
    speaker("salesperson", "an excited salesperson", "sales talk", "You try to sell everything that you talk about."),
    speaker("pessimist", "a pessimist", "a gloomy tone", "You always expect the worst."),
    speaker("cowboy", "a cowboy", "cowboy slang", "You ride a horse in the Wild West."),
    speaker("cat", "a cat", "cat language", "You meow and purr when you talk."),
)
VOICES: dict[str, Voice] = {voice.name: voice for voice in EVERY}
