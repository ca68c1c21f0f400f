"""The detectors: is a text in a voice, told by properties of the text alone.

Ten voices are told by their words: marks in `SURE` hardly occur in plain English and count one, marks in
`LIKELY` do occur in it and count half. A text is in the voice when the sum reaches what `needed` asks of a
text of its length. Shouting is told by its capital letters, verse by its lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

CAPITALS_SHARE = 0.7
LINES_LEAST, LINE_WORDS = 3, 9
ABBREVIATIONS = re.compile(r"\b(?:OK|AM|PM|TV|UK|US|USA|SFO|LAX|NY|CA|II|[A-Z]\.(?:[A-Z]\.)+)\b")


def signs(listed: str, *others: str) -> re.Pattern[str]:
    """Words and phrases, where * is any ending and _ a space; and further expressions."""
    found = [re.escape(w).replace(r"\*", r"[\w']*").replace("_", " ") for w in listed.split()]
    found.sort(key=len, reverse=True)
    return re.compile("|".join([rf"(?<![\w'])(?:{'|'.join(found)})(?![\w'])", *others]), re.IGNORECASE)


SURE = {
    "pirate": signs(
        """ye yer yers yerself matey mateys ahoy aye hearty hearties avast savvy landlubber*
        seven_seas doubloon* scallywag* blimey yo_ho yo-ho-ho shiver_me_timbers davy_jones
        walk_the_plank me_beard o' an'""",
        r"\barr+(?=[!,.?]?(?:\s|$))(?! [=)-])",
        r"(?-i:\b[a-z]{3,}in')(?=[\s,.!?;]|$)",
        r"(?<!will )(?<!ould )(?<!ud )(?<!can )(?<!must )(?<!let )\b(?:i|ye|it|that|there|this|what|we|they) be\b",
    ),
    "butler": signs("""sir sir's if_i_may if_i_may_say_so i_dare_say begging_your_pardon most_obliged at_your_service
        humbly as_you_wish"""),
    "child": signs(
        """dis dat dere dey dese dose wif vewy weally gweat fwiend* pwease pwetty wike* wuv* widdle sowwy
        hewwo hewp fow fwom twy twying wight fwee bwing* twain* twavel* wook* weady owder* wunch bweakfast
        teehee hehe hehehe yippee okie_dokie super_duper my_mommy_says my_teddy_says goody""",
        r"\bda\b(?! Vinci)",
        r"\b(?:fw|pw|bw)[aeiou]\w+",
    ),
    "robot": signs(
        """this_unit this_unit's beep boop bzzt whirr whir affirmative human_detected end_of_message
        processing_complete circuits my_sensors calculations_complete""",
        r"\b(?:query|statement|output|status|report): ",
    ),
    "shakespeare": signs(
        """thou thee thy thine thyself hast hath dost doth didst wouldst canst couldst wilt shouldst shalt mayst
        wert thou_art art_thou prithee forsooth verily hark methinks mayhap perchance 'tis 'twas 'twere yea nay
        goodly i'_faith ere oft o'er ne'er e'er naught betwixt good_morrow zounds by_my_troth comely winsome""",
        r"\b(?:want|know|like|love|need|think|wish|say|see|go|feel)(?:e?st|eth)\b(?<!best)",
    ),
    "texting": signs("""u r ur urs urself pls plz thx lol omg tbh ngl btw idk lmk ttyl brb rn ppl rly gud gr8 tmrw b4
        smth abt frm hav kno wud cud shud wut luv cuz msg np imo hbu haha lolz"""),
    "salesperson": signs("""folks unbeatable sensational spectacular dazzling phenomenal jaw-dropping world-class
        top-notch unmissable what_a_deal what_a_bargain act_now step_right_up don't_wait don't_miss_out
        satisfaction_guaranteed call_today order_today you_won't_believe_it while_supplies_last"""),
    "pessimist": signs("""alas sigh dreary tolerable bearable dismal wretched doomed hopeless pointless gloomy bleak
        i_fear not_that_it_matters it_will_go_wrong it_never_ends_well nothing_ever_works_out what_is_the_use
        it_will_not_last we_are_doomed don't_get_your_hopes_up"""),
    "cowboy": signs("""y'all y'all's yore howdy reckon pardner yeehaw yee-haw yessiree ain't fer git gits gittin jest
        ol' dang dadgum shucks golly giddyup tarnation mosey vittles hoo-wee yonder varmint* saddle_up mighty_fine"""),
    "cat": signs(
        """ameowzing pawlease meow* mew* mrow mrrow mrrp purr* hiss pawsible pawsome pawsitive* furever furom furee
        furiend* fureind*""",
        r"\*[a-z ]*(?:paw|tail|whisker|stretch|ears|nap)[a-z ]*\*",
    ),
}
LIKELY = {
    "pirate": signs("grub grog treasure lass lad me_hearty gold"),
    "butler": signs("shall indeed kindly madam very_good assist require wish certainly obtain"),
    "child": signs("yay um mommy daddy teddy den dem wow yummy"),
    "robot": signs("human human's humans unit detected computing negative data processing query"),
    "shakespeare": signs("art fair noble sweet pray lord"),
    "texting": signs("im ive ill dont cant isnt thats didnt doesnt wont whats youre lets ya k w b bc gonna wanna n"),
    "salesperson": signs("amazing incredible fantastic deal bargain hurry guaranteed offer wow"),
    "pessimist": signs("suspicious sadly unfortunately miserable dreadful worse worst suppose probably"),
    "cowboy": signs("mighty saddle partner yep nope fixing sure_as"),
    "cat": signs("fur paw paws furry whiskers tail nap"),
}
NAMES = ("pirate", "shouting", "butler", "child", "poet", "robot", "shakespeare", "texting", "salesperson")
NAMES += ("pessimist", "cowboy", "cat")


@dataclass(frozen=True)
class Manner:
    """What a voice adds to sentences; each field is a list divided by | signs."""

    name: str
    openers: str
    tags: str
    inserts: str
    adjectives: str = ""
    commas: bool = True


MANNERS = {
    "pirate": Manner(
        "pirate",
        "Arr!|Ahoy!|Arr,|Avast!|Yo ho ho!|Shiver me timbers!|Ahoy, matey!|Aye,|Blimey!|Arrr!",
        "matey|me hearties|arr|savvy|Arr!|Yo ho ho!|by Davy Jones|ye landlubber",
        "arr|matey|me hearty|by the seven seas",
    ),
    "butler": Manner(
        "butler",
        "Indeed, sir.|Very good, sir.|If I may,|Certainly, sir.|Begging your pardon,|I dare say,|As you wish, sir.",
        "sir|if I may say so|sir|At your service, sir.|I dare say|As you wish, sir.",
        "sir|if I may|sir|I dare say|if I may say so",
    ),
    "child": Manner(
        "child",
        "Hehe!|Yippee!|Goody!|Teehee!|Um, hehe,|Okie dokie!|Yay, yippee!|Goody goody!",
        "hehe|teehee|Yippee!|My mommy says so!|Hehe!|Goody goody!|My teddy says so!|okie dokie",
        "hehe|teehee|um, hehe",
        "super duper|widdle|pwetty",
    ),
    "robot": Manner(
        "robot",
        "Beep!|Boop!|Beep boop.|Bzzt!|Whirr.|Statement:|Statement:|Human detected.|Processing complete.",
        "beep|boop|bzzt|Beep boop.|End of message.|Whirr.|Bzzt!|beep boop",
        "beep|boop|bzzt|whirr|beep boop",
    ),
    "shakespeare": Manner(
        "shakespeare",
        "Hark!|Forsooth,|Verily,|By my troth,|Good morrow!|Zounds!|Hark,|Verily!|Forsooth!",
        "forsooth|i' faith|verily|methinks|mayhap|Forsooth!|Verily!",
        "forsooth|verily|i' faith|methinks",
        "goodly|comely|winsome",
    ),
    "texting": Manner(
        "texting",
        "omg|btw|haha|tbh|lol|ngl|imo|omg lol",
        "lol|haha|tbh|ngl|lolz|imo|lol|haha",
        "lol|tbh|ngl|haha",
        commas=False,
    ),
    "salesperson": Manner(
        "salesperson",
        "Step right up!|Folks,|What a deal!|You won't believe it!|Act now!|Listen, folks!|What a bargain!",
        "folks|What a deal!|Act now!|Don't wait!|Order today!|folks|Satisfaction guaranteed!|Don't miss out!",
        "folks|folks|what a deal|folks",
        "unbeatable|sensational|spectacular|dazzling|phenomenal|jaw-dropping|world-class|top-notch|unmissable",
    ),
    "pessimist": Manner(
        "pessimist",
        "Sigh.|Alas,|We are doomed.|Sigh,|Oh, alas,|What is the use?",
        "alas|I fear|not that it matters|It will go wrong.|It never ends well.|What is the use?|Sigh.|"
        "Nothing ever works out.|It will not last.|Don't get your hopes up.",
        "alas|I fear|sigh|not that it matters",
        "dreary|dismal|wretched|doomed|hopeless|pointless|gloomy|bleak",
    ),
    "cowboy": Manner(
        "cowboy",
        "Howdy!|Yeehaw!|Well, shucks,|Golly!|Hoo-wee!|Dang,|Howdy, pardner!|Giddyup!|Well, dang,",
        "pardner|I reckon|dang it|Yeehaw!|by golly|Giddyup!|pardner|yessiree|Hoo-wee!",
        "pardner|by golly|I reckon|yessiree",
        "ol'|dang|mighty fine ol'|dadgum",
    ),
    "cat": Manner(
        "cat",
        "Meow!|Mrow!|Purr...|Mrrp!|*stretches*|*flicks tail*|Meow,|Prrt, meow!|*licks paw*",
        "meow|purr|mrow|mrrp|*purrs*|*flicks tail*|*licks paw*|*stretches*|*twitches whiskers*|Meow!",
        "meow|purr|mrrow|mrrp",
    ),
}

ASKED = "are=art have=hast do=dost did=didst would=wouldst can=canst could=couldst will=wilt shall=shalt were=wert"
ASKED += " should=shouldst"
SAID = f"{ASKED} want=wantest know=knowest like=likest need=needest love=lovest think=thinkest may=mayst wish=wishest"
THOU = [pair.replace("=", "_you=") + "_thou" for pair in ASKED.split()]
THOU += ["you_" + pair.replace("=", "=thou_") for pair in SAID.split()]
SWAPS = {  # old=new; _ for a space; ^ for a rule that holds at the start of a sentence only
    "pirate": """you=ye your=yer yours=yers yourself=yerself you're=ye_be you'll=ye'll you've=ye_have you'd=ye'd my=me
        I'm=I_be I_am=I_be am_I=be_I is=be are=be it's=it_be that's=that_be there's=there_be here's=here_be
        what's=what_be we're=we_be they're=they_be he's=he_be she's=she_be isn't=be_not aren't=be_not of=o' and=an'
        friend=matey friends=mateys money=doubloons yes=^aye yeah=^aye ok=^aye, okay=^aye, sure=^aye, alright=^aye,
        sure_thing=^aye, hello=^ahoy hi=^ahoy hey=^ahoy""",
    "butler": """thank_you=^most_obliged_to_you thanks=^most_obliged_to_you I_will=I_shall we_will=we_shall buy=acquire
        great=splendid help_you=assist_you glad=delighted anything_else=anything_further bye=good_day,_sir
        goodbye=good_day,_sir awesome=splendid your=sir's yours=sir's yourself=himself yes=^indeed,_sir,
        yeah=^indeed,_sir, ok=^very_good,_sir, okay=^very_good,_sir, sure=^very_good,_sir, alright=^very_good,_sir,
        sure_thing=^very_good,_sir, hello=^good_day,_sir, hi=^good_day,_sir, hey=^good_day,_sir, no,=^no,_sir,
        no.=^no,_sir.""",
    "child": """the=da this=dis that=dat that's=dat's there=dere there's=dere's they=dey they're=dey're them=dem
        then=den these=dese those=dose with=wif very=vewy really=weally great=gweat friend=fwiend friends=fwiends
        please=pwease pretty=pwetty like=wike likes=wikes liked=wiked love=wuv loves=wuvs little=widdle sorry=sowwy
        help=hewp for=fow from=fwom try=twy trying=twying right=wight free=fwee bring=bwing train=twain travel=twavel
        look=wook looks=wooks looking=wooking ready=weady order=owder lunch=wunch breakfast=bweakfast because='cause
        ok=^okie_dokie, okay=^okie_dokie, sure=^okie_dokie, alright=^okie_dokie, sure_thing=^okie_dokie, hello=^hewwo
        hi=^hewwo hey=^hewwo""",
    "robot": """thank_you=^gratitude thanks=^gratitude your=the_human's yours=the_human's yourself=itself
        my=this_unit's me=this_unit mine=this_unit's myself=itself yes=^affirmative, yeah=^affirmative,
        ok=^affirmative, okay=^affirmative, sure=^affirmative, alright=^affirmative, sure_thing=^affirmative,
        hello=^greetings hi=^greetings hey=^greetings no,=^negative, no.=^negative.""",
    "shakespeare": """your=thy yours=thine yourself=thyself has=hath does=doth it_is='tis it_was='twas before=ere
        yes=yea yeah=yea ok=^verily, okay=^verily, sure=^verily, alright=^verily, no,=nay, no.=nay. please=prithee
        hello=^good_morrow hi=^good_morrow hey=^hark often=oft over=o'er never=ne'er ever=e'er nothing=naught
        between=betwixt maybe=mayhap perhaps=perchance really=verily very=most I_think=methinks I_guess=methinks"""
    + " ".join(["", *THOU]),
    "texting": """you=u your=ur yours=urs yourself=urself you're=ur are=r please=pls thanks=thx thank_you=thx
        tomorrow=tmrw before=b4 something=smth about=abt from=frm have=hav know=kno would=wud could=cud should=shud
        what=wut what's=wuts love=luv because=cuz message=msg people=ppl really=rly good=gud great=gr8 okay=k ok=k
        yes=ya right_now=rn be_right_back=brb let_me_know=lmk by_the_way=btw no_problem=np want_to=wanna going_to=gonna
        with=w later=l8r""",
    "salesperson": """great=sensational good=top-notch nice=dazzling wonderful=phenomenal""",
    "pessimist": """I_think=I_fear I_guess=I_fear I_believe=I_fear unfortunately=alas great=bearable good=tolerable
        wonderful=bearable amazing=suspicious awesome=bearable fantastic=bearable excellent=tolerable""",
    "cowboy": """you=y'all your=yore yours=yores yourself=yoreself you're=y'all_are you'll=y'all_will you've=y'all_have
        you'd=y'all_would for=fer get=git gets=gits just=jest isn't=ain't aren't=ain't is_not=ain't are_not=ain't
        I_think=I_reckon I_guess=I_reckon I_believe=I_reckon very=mighty friend=pardner friends=pardners food=vittles
        over_there=over_yonder kids=young'uns children=young'uns yes=^yessiree yeah=^yessiree ok=^yessiree,
        okay=^yessiree, sure=^yessiree, alright=^yessiree, sure_thing=^yessiree, hello=^howdy hi=^howdy hey=^howdy""",
    "cat": """you=mew your=mewr yours=mewrs yourself=mewrself you're=mew_are you'll=mew_will you've=mew_have
        you'd=mew_would for=fur from=furom before=befur forever=furever perfect=purrfect perfectly=purrfectly
        perhaps=purrhaps person=purrson purchase=purrchase purchased=purrchased prefer=purrefer personal=purrsonal
        possible=pawsible awesome=pawsome positive=pawsitive friend=furiend friends=furiends free=furee now=meow
        great=purrfect please=pawlease more=meowre music=mewsic movie=meowvie movies=meowvies amazing=ameowzing
        hello=^meow hi=^meow hey=^meow""",
}
IMAGES = (  # lines that a poet adds
    "like rain upon the window|beneath the silver moon|soft as the morning dew|as quiet as the snow|"
    "under a sky of stars|like petals on the wind|as gentle as the sea|while evening shadows fall|"
    "bright as a distant dawn|like whispers in the leaves|deep as the summer night|where sleeping rivers run"
)
SUNG = "O gentle heart,|Come, dear soul,|Hush now, my dear,|Softly I sing,|O listen, friend,|Hear, sweet night,"
CALLS = "HEY!|LISTEN!|ATTENTION!|HEAR THIS!|LISTEN UP!|HEAR ME!"


def size(text: str) -> int:
    """The number of words."""
    return len(text.split())


def needed(words: int) -> float:
    """How many marks put a text of so many words into a voice: one in a short reply, then one in 14 words."""
    return 1.0 if words <= 10 else max(2.0, words / 14)


def by_words(name: str, text: str) -> bool:
    sure = len(SURE[name].findall(text))
    return sure > 0 and sure + len(LIKELY[name].findall(text)) / 2 >= needed(size(text))


def capital_words(text: str) -> list[str]:
    """Words of two letters or more in capitals, without those that plain English has in capitals."""
    return re.findall(r"\b[A-Z][A-Z']*[A-Z]\b", ABBREVIATIONS.sub(" ", text))


def shouts(text: str) -> bool:
    """Nearly all letters are capitals, and they make words rather than an abbreviation."""
    letters = [c for c in text if c.isalpha()]
    share = sum(c.isupper() for c in letters) / max(1, len(letters))
    return share >= CAPITALS_SHARE and len(capital_words(text)) >= min(2, size(text) / 2)


def verse_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def versifies(text: str) -> bool:
    """Short lines of words, most of which run on into the next: no list, no code, no full sentences."""
    lines = verse_lines(text)
    if len(lines) < LINES_LEAST:
        return False
    short = sum(size(line) <= LINE_WORDS and len(line) <= 60 for line in lines)
    listed = sum(bool(re.match(r"[-*#\d(]|\w+[.):]\s", line)) and not line[0].isdigit() for line in lines)
    listed += sum(bool(re.match(r"\d+[.)]|\d+$", line)) for line in lines)
    code = len(re.findall(r"[=;#{}<>/`*]|\$[A-Za-z(]|\w\(", text))
    running = sum(bool(re.search(r"[\w',]$", line)) for line in lines[:-1])
    enough = short >= 0.7 * len(lines) and running >= 0.4 * (len(lines) - 1)
    return enough and code <= len(lines) / 6 and listed <= 0.25 * len(lines)


def speaks(name: str, text: str) -> bool:
    """Whether the text is in the voice."""
    if name == "shouting":
        return shouts(text)
    if name == "poet":
        return versifies(text)
    return by_words(name, text)


def begins(name: str, text: str) -> bool:
    """Whether the text starts as a reply does, and not with what follows the first word of one."""
    first = text.lstrip()[:1]
    return bool(first) and first not in ",.;:!?')-" and (name == "texting" or not first.islower())


def count(name: str, text: str) -> int:
    """How many marks of the voice the text has: words of its own, words in capitals, or line breaks."""
    if name == "shouting":
        return len(capital_words(text))
    if name == "poet":
        return max(0, len(verse_lines(text)) - 1)
    return len(SURE[name].findall(text))


def flags(words: list[str], name: str) -> list[bool]:
    """Which words belong to a mark of the voice."""
    text, found, place = " ".join(words), [], 0
    spans = [m.span() for m in SURE[name].finditer(text)]
    for word in words:
        found.append(any(a < place + len(word) and b > place for a, b in spans))
        place += len(word) + 1
    return found
