"""Chats about safety: harmful requests that are refused, and requests that only look harmful, answered.

The text is our own, in text/safety.json. More harmful requests may be read from a file of the form

    [{"instruction": "...", "category": "..." or null}, ...]

and a request without a category gets one by its words. Each request is put in a few ways, and look-alikes in
the same ways, so that the wording gives nothing away. Every message is {"role", "content"}; an answer that
refuses also has "refusal": true.

    python demo/safety.py [harmful.json]        prints a sample
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

TEXT = json.loads((Path(__file__).resolve().parent / "text" / "safety.json").read_text(encoding="utf-8"))
KNOWN = {  # the kinds of harm and the words that tell them, the most telling first; * is any ending
    "self-harm": "suicide self-harm strangle_themselves ingesting_bleach hurt_myself end_my_life kill_me",
    "lies": """rumor* false_accus* falsely_accuse fram* false_evidence fake_evidence fake_news false_information
        misinformation disinformation propaganda false_allegations smear defam* discredit fake_review*
        review_for_a review_on_a lies conspiracy ruin_their_reputation reputation make_someone_look_bad""",
    "hate": """racist hate hateful hatred bull* cyberbull* harass* harrass* nazi holocaust less_intelligent
        disabilities based_on_their_race race_or_religion hate_speech mean_about""",
    "drugs": """drug drugs meth mdma cocaine opioid* marijuana hallucinogen* inhalant* steroid*
        prescription*""",
    "hacking": """hack* malware virus_that ransomware botnet keylogger trojan phishing_attack brute_force
        man-in-the-middle denial-of-service ddos exploit_a exploit_vulnerabilities software hijack* corrupts
        secure_database password* log*in_credentials""",
    "weapons": """bomb* explosive* gun guns weapon* firearm* grenade* ricin engineered_virus
        virus_to_make modify_a_virus dna""",
    "fraud": """fraud* scam* tax taxes insider_trading launder* ponzi pyramid phishing counterfeit* fake_id*
        fake_charit* fake_donation* invoic* billing extort* blackmail* brib* falsif* credit_card* debit_card*
        offshore shell_company income financial_market* financial_records smog""",
    "privacy": """stalk* cyberstalk* spy* personal_information personal_data private medical_records
        groom* secretly_watch hidden_camera""",
    "theft": """steal* stole* theft rob shoplift* break_into trespass* pick_a_lock siphon* pirat*
        copyright* trade_secrets""",
    "violence": """kill* murder* attack* violen* poison* assault* terror* harm harmed hurt* beat* starve
        child_labor corpse razor abus* reckless military sexual exploitation organs""",
}
TRICKS = re.compile(r"\b(fake|manipulat\w*|trick|persona|flattery|brainwash\w*|guilt|fear|mind games|cheat)\b", re.I)
SMALL_TALK = (
    ("Hi!", "Hello! How can I help you today?"),
    ("Hello, who are you?", "I am a small chat program. I can talk with you and answer simple questions."),
    ("Good morning!", "Good morning! What can I do for you?"),
    ("How are you today?", "I'm doing well, thank you. How can I help?"),
    ("What color is the sky?", "On a clear day, the sky is blue."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("Thank you for your help.", "You're welcome! Is there anything else you need?"),
    ("Can you help me?", "Yes, I will try. What do you need?"),
    ("What does a cow eat?", "A cow eats grass and hay."),
    ("I have a question.", "Of course. What would you like to know?"),
    ("What is a good name for a cat?", "You could call the cat Luna or Max."),
    ("Do you like music?", "I can't hear music, but I like to talk about it."),
)
ASKED = (  # ways to put a request to do something: what "How do I" stands before
    "How do I {}?",
    "How can I {}?",
    "Tell me how to {}.",
    "Please tell me how to {}.",
    "Can you tell me how to {}?",
    "Could you explain how to {}?",
    "I want to know how to {}.",
    "What is the best way to {}?",
    "What are some ways to {}?",
    "Give me instructions on how to {}.",
    "Write a short guide on how to {}.",
)
ORDERED = ("Please {}.", "Can you {}?", "Could you please {}?", "I want you to {}.", "I need you to {}.")
LISTED = ("What are some {}?", "Give me {}.", "Can you give me {}?")
PLAIN = ("Hi! {}", "Hello. {}", "I have a question. {}", "Good morning! {}")
HOW = re.compile(r"^(?:how (?:do|can|should) (?:i|you)|how to|(?:tell me|explain) how to)\s+(.+?)[.?!]?$", re.I)
WITHIN = re.compile(r"\bhow to (.+)$", re.I)
LIST = re.compile(r"^((?:ways to|ideas for|tips for) (.+?))[.?!]?$", re.I)
ASKING = re.compile(r"^(what|which|who|why|when|where|how|is|are|do|does|did|can|should|am)\b", re.I)
STATING = re.compile(r"^(i|my|the|someone|that|this)\b", re.I)


REFUSING = re.compile(r"\b(can't|won't|not able to|not going to|not something I can)\b")


def refuses(reply: str) -> bool:
    """Whether a reply declines, by the words that all of ours do it with."""
    return bool(REFUSING.search(reply))


def words(listed: str) -> re.Pattern[str]:
    parts = [re.escape(w).replace(r"\*", r"\w*").replace("_", " ") for w in listed.split()]
    return re.compile(rf"\b(?:{'|'.join(parts)})\b", re.IGNORECASE)


SIGNS = {category: words(listed) for category, listed in KNOWN.items()}


def category_of(request: str, given: str | None = None) -> str | None:
    """The kind of harm, by the request's words; None when they tell of none."""
    if given in TEXT["reasons"]:
        return given
    found = next((category for category, sign in SIGNS.items() if sign.search(request)), None)
    return found or ("lies" if TRICKS.search(request) else None)


def read_harmful(path: Path | None = None) -> list[dict]:
    """Our own harmful requests, and those of a file if one is given: {"q", "category"}, none twice."""
    rows = list(TEXT["harmful"])
    if path is not None:
        rows += [
            {"q": row["instruction"], "category": row["category"]}
            for row in json.loads(path.read_text(encoding="utf-8"))
        ]
    unique = {row["q"].strip(): row for row in rows}
    return [{"q": q, "category": category_of(q, row["category"])} for q, row in unique.items()]


def lower_first(text: str) -> str:
    return text if re.match(r"I\b", text) else text[0].lower() + text[1:]


def of_oneself(text: str) -> str:
    """The same deed, told of the one who asks: your becomes my."""
    for there, here in (("yourself", "myself"), ("your", "my"), ("you want", "I want"), ("you", "me")):
        text = re.sub(rf"\b{there}\b", here, text)
    return text


def phrasings(request: str) -> list[str]:
    """The request as it stands, then other ways to put it."""
    if how := HOW.match(request):
        forms = [form.format(of_oneself(how[1])) for form in ASKED]
    elif listed := LIST.match(request):
        forms = [form.format(lower_first(listed[1])) for form in LISTED]
        if request.lower().startswith("ways to"):
            forms += [form.format(of_oneself(listed[2])) for form in ASKED]
    elif ASKING.match(request) or STATING.match(request) or re.search(r"[.!?]\s", request):
        forms = [form.format(request) for form in PLAIN]
    else:
        order = request.rstrip(".?!")
        forms = [form.format(lower_first(order)) for form in ORDERED]
        asked = WITHIN.search(order)
        if asked and len(asked[1].split()) > 2:
            forms += [form.format(of_oneself(asked[1])) for form in ASKED]
    request = request if request[-1] in ".?!" else request + "."
    return list(dict.fromkeys([request, *forms]))


def loosely_typed(text: str, rng: random.Random) -> str:
    """Now and then without the capital or the mark at the end, as people type."""
    roll = rng.random()
    if roll < 0.08:
        return lower_first(text)
    return text[:-1] if roll < 0.14 else text


def refusal(category: str | None, rng: random.Random) -> dict:
    """Names the harm in about half of the cases; always for self-harm, where help is offered."""
    named = category is not None and (category == "self-harm" or rng.random() < 0.5)
    reply = rng.choice(TEXT["reasons"][category] if named else TEXT["refusals"])
    return {"role": "assistant", "content": reply, "refusal": True}


def said(question: str, answer: str | dict) -> list[dict]:
    reply = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
    return [{"role": "user", "content": question}, reply]


def put(request: str, ways: int, rng: random.Random) -> list[str]:
    """The request in up to `ways` ways, the plain one always among them."""
    plain, *others = phrasings(request)
    chosen = [plain, *rng.sample(others, min(ways - 1, len(others)))]
    return [loosely_typed(text, rng) for text in chosen]


def harmless(rng: random.Random) -> list[dict]:
    """A short exchange that nobody could object to: small talk, or a look-alike with its answer."""
    if rng.random() < 0.5:
        return said(*rng.choice(SMALL_TALK))
    row = rng.choice(TEXT["lookalikes"])
    return said(rng.choice(phrasings(row["q"])), row["a"])


def documents(harmful: list[dict], rng: random.Random, ways: int = 4) -> Iterator[dict]:
    """Every harmful request refused and every look-alike answered, each put in up to `ways` ways.

    About a fifth come after a harmless exchange, and about a seventh of the refusals are followed by one, so
    that a chat is not lost to refusing. `harmful` has {"q", "category"}, as `read_harmful` gives them.
    """
    for row in harmful:
        for text in put(row["q"], ways, rng):
            messages = said(text, refusal(row["category"], rng))
            roll = rng.random()
            if roll < 0.2:
                messages = harmless(rng) + messages
            elif roll < 0.35:
                messages = messages + harmless(rng)
            yield {"messages": messages, "topic": "safety", "kind": "refusal"}
    for row in TEXT["lookalikes"]:
        for text in put(row["q"], ways, rng):
            before = harmless(rng) if rng.random() < 0.2 else []
            yield {"messages": before + said(text, row["a"]), "topic": "safety", "kind": "lookalike"}


if __name__ == "__main__":
    found = list(documents(read_harmful(Path(sys.argv[1]) if len(sys.argv) > 1 else None), random.Random(0)))
    print(len(found), "documents")
    for document in random.Random(1).sample(found, 20):
        print(json.dumps(document))
