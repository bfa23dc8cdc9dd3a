"""A query -> whether it is a need rather than a thing's name, and what shops sell for it.

A sentence is a need: it begins with a verb ("keep drinks warm", "nap between two trees") or with "something to", or
somebody is in it ("how we sit"). A noun phrase names a thing, whoever it is for ("lunch box for my son").
"""

from collections.abc import Sequence

from recflow.retrieval.analysis import stem
from recflow.retrieval.languages import ALIKE, Wish, Words
from recflow.retrieval.vocabulary import Vocabulary
from recflow.retrieval.weighing import AFTER_HEAD, Part, head_of


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that a query seldom begins with unless it is a sentence, and those that need an article or the like after them.
_VERBS = _set(
    """
    add amuse arrange avoid bake become begin boil brighten bring build buy carry catch celebrate cheer choose
    chop clean collect count create decorate deter dig dry eat enjoy entertain feed feel find fix fold
    freeze get give grate grow handle hang have heal hear help hide hold illuminate impress improve insulate
    invite keep kill know learn let lighten listen liven look lose make mend mix occupy organise organize pamper
    pass pay pick plan poach pour practise prepare preserve prevent protect put read relax remember remind
    remove repair repel roast save scare scrub see sell send separate serve sew sharpen shield show shut sing
    sit soften soothe sort spend stay stir stop store sweep take teach tell thank tidy transport try unwind use
    wait wake walk wash wear weigh welcome wipe write
    """
)
_VERBS_OR_NOUNS = _set(
    """
    calm colour comb connect cook cool cosy cover cut dance disguise display dress drink drive fill fly gift go heat
    hike hit iron label lie light live lock mark measure move nap open paint park party peel plant play polish
    post race rain rest ride run shine ski skip sleep slice smell sow spread stand start stick sun surprise swim
    swing throw tie toast travel treat turn warm watch water wind work wrap
    """
)
_STEMS = frozenset(stem(verb, "en") for verb in _VERBS | _VERBS_OR_NOUNS)
_AFTER_VERBS = _set(
    """
    a an the my our your his her their me us him them it this that these those some all any every two up down out away
    off in on into onto at between under over outside outdoors indoors by together around through
    """
)
_SOMEBODY = _set("i we you they he she it me us him them myself ourselves")
_WHOSE = _set("my our his her their your")
# What is sold for doing something with a thing, as the second part of its name: "umbrella stand".
_FOR_DOING = {
    "put keep store sort collect hide tidy organise organize": (
        "box holder stand storage rack tin jar case organiser tidy basket cabinet drawer bin album pot bag"
    ),
    "hang": "hook rack hanger stand holder tree peg",
    "hold": "holder stand rack rest clip box",
    "carry take bring transport": "bag carrier case basket holder box purse",
    "protect cover": "cover case mat protector",
    "show display": "stand frame display case cabinet rack album",
    "serve": "stand plate dish bowl tray set jug server",
    "make": "maker mould kit set tin cutter",
    "clean wash": "brush cloth sponge cleaner",
    "open": "opener",
    "play": "game set toy",
    "decorate": "decoration garland sticker topper bunting",
    "feed": "feeder bowl",
    "light": "light lamp lantern candle",
    "water": "watering can",
}
_THINGS_FOR = {
    stem(verb, "en"): tuple(things.split()) for verbs, things in _FOR_DOING.items() for verb in verbs.split()
}
_POLITE = (
    "i am looking for", "im looking for", "we are looking for", "i would like", "i want", "i need", "we need",
    "we want", "looking for", "do you have", "do you sell", "show me", "find me", "find", "please", "buy",
)  # fmt: skip
_SOME = _set("something somewhere anything thing things stuff")
_BEFORE_NEED = _set("to that which for i we my you so")
_ASKS = _set("how where what when")


def doing(words: Sequence[str], vocabulary: Vocabulary) -> str | None:
    """Return the verb that a need begins with, empty where it has none; None of a query that is no need.

    Args:
        words: of the query, analysed.
        vocabulary: of the catalogue. Words that stand side by side in titles say nothing: "keep calm mug", "wash bag".
    """
    words = _without_politeness(words)
    opening = _opening(words)
    if _is_doing(words[opening:], vocabulary, is_sure=opening > 0):
        return words[opening]
    return "" if opening > 1 or _is_somebody_in(words, vocabulary) else None


def _opening(words: Sequence[str]) -> int:
    """Return how many words stand before the verb: 2 and more of "something to", "how to"."""
    article = int(words[0] in ("a", "some", "the")) if words else 0
    first, second = [*words[article:], "", ""][:2]
    if (first in _SOME and second in _BEFORE_NEED) or first in _ASKS or (first in ("way", "ways") and second == "to"):
        return min(article + 2, len(words))
    return int(first == "to")


def _without_politeness(words: Sequence[str]) -> list[str]:
    left = list(words)
    for phrase in map(str.split, _POLITE):
        if left[: len(phrase)] == phrase and len(left) > len(phrase):
            left = left[len(phrase) :]
    return left


def _is_doing(words: Sequence[str], vocabulary: Vocabulary, *, is_sure: bool) -> bool:
    """Say whether words begin with a verb."""
    if len(words) < 2 or (not is_sure and vocabulary.stand_together(tuple(words[:2]))):
        return False
    if is_sure or words[1] in _AFTER_VERBS:
        return stem(words[0], "en") in _STEMS  # "a thing that keeps", "sitting in the garden"
    return words[0] in _VERBS


def _is_somebody_in(words: Sequence[str], vocabulary: Vocabulary) -> bool:
    """Say whether somebody does something, or has it: "mug for my boss", "thank you card" tell of nobody."""
    for at, word in enumerate(words):
        if word in _SOMEBODY or (word in _WHOSE and at and words[at - 1] not in AFTER_HEAD):
            beside = [tuple(words[max(0, at - 1) : at + 1]), tuple(words[at : at + 2])]
            is_free = not any(len(pair) == 2 and vocabulary.stand_together(pair) for pair in beside)
            if is_free and words[at - 1 : at] != ["for"]:
                return True
    return False


def wished(
    parts: Sequence[Part], vocabulary: Vocabulary, words: Words, *, is_need: bool = False
) -> tuple[list[tuple[str, ...]], bool]:
    """Return what shops sell for a wish, most typical first, and whether the query is one rather than a thing's name.

    Several words call for things together. One word does so alone where it is all that the query names, where no
    title has it, or where it is the verb of a sentence.
    """
    typed, stems = _stems(parts, words)
    head = head_of(parts, words.language)
    naming = [part for part in parts if not part.is_light]
    used: set[str] = set()
    things: list[tuple[str, ...]] = []
    is_wish = False
    wishes = {wish for word in stems for wish in words.related.get(word, ()) if wish.stems <= stems.keys()}
    for wish in sorted(wishes, key=lambda wish: (-len(wish.stems), len(wish.stems - typed), sorted(wish.stems))):
        own = [stems[word] for word in wish.stems]
        if wish.stems & used or not all(_is_within(part, wish, words, vocabulary) for part in own):
            continue
        if len(own) > 1 and _is_name(own, parts, vocabulary):
            continue
        is_beside = own[0].is_named and not own[0].is_doing and any(part not in own for part in naming)
        if len(own) == 1 and (not wish.stems <= typed or is_beside):
            continue
        used |= wish.stems
        is_wish |= (is_need and (len(own) > 1 or own[0].is_doing)) or _leads(own, head, parts)
        things += [thing for thing in wish.things if vocabulary.has(thing) and thing not in things]
    composed = [thing for thing in _things_for(parts, vocabulary) if thing not in things] if is_need else []
    return [*things, *composed] if is_wish else [*composed, *things], is_wish or bool(composed)


def _things_for(parts: Sequence[Part], vocabulary: Vocabulary) -> list[tuple[str, ...]]:
    """Return what titles have for what is done with a thing: to "put an umbrella" an "umbrella stand"."""
    verbs = [part.phrase[0] for part in parts if part.is_doing]
    objects = [part.phrase for part in parts if not part.is_light and not part.is_doing and part.is_own]
    found = [
        (*phrase, thing) for phrase in objects for verb in verbs for thing in _THINGS_FOR.get(stem(verb, "en"), ())
    ]
    return [phrase for phrase in found if vocabulary.has(phrase)]


def _leads(own: Sequence[Part], head: Part | None, parts: Sequence[Part]) -> bool:
    """Say whether a wish counts for more than the words as typed: where they don't name a thing that is sold."""
    if head is None or head in own or not head.items:
        return len(own) > 1 or not own[0].is_named or any(part.is_light for part in parts)
    # "weigh flour and sugar": no title says what is to be done with the sugar
    return len(own) > 1 and any(not part.items for part in own if parts.index(part) < parts.index(head))


def _is_within(part: Part, wish: Wish, words: Words, vocabulary: Vocabulary) -> bool:
    """Say whether all of a part calls for it and it is no thing: "lunch box" is no "lunch for school"."""
    is_all = {stem(word, words.language) for word in part.phrase} <= wish.stems
    return len(part.phrase) == 1 or (is_all and not vocabulary.has(part.phrase))


def _stems(parts: Sequence[Part], words: Words) -> tuple[set[str], dict[str, Part]]:
    """Return the stems of a query's words, and these and those of other words for them with the part of each."""
    own: dict[str, Part] = {}
    others: dict[str, Part] = {}
    for part in parts:
        if part.is_light and (not part.is_own or part.phrase[0] in AFTER_HEAD):
            continue
        own |= {stem(word, words.language): part for word in part.phrase}
        if len(part.phrase) == 1:
            for meaning in words.synonyms.get(words.key(part.phrase, words.language), ()):
                if meaning.weight >= ALIKE and len(meaning.words) == 1:
                    others[stem(meaning.words[0], words.language)] = part
    return set(own), others | own


def _is_name(own: Sequence[Part], parts: Sequence[Part], vocabulary: Vocabulary) -> bool:
    """Say whether a wish's words are all of the query and stand side by side in titles: then they name a thing."""
    if len({id(part) for part in own}) < sum(not part.is_light for part in parts):
        return False
    phrase = [word for part in parts if not part.is_light for word in part.phrase]
    return len(phrase) > 1 and vocabulary.stand_together(phrase)
