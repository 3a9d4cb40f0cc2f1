"""The English-like demo language: documents about one topic, two persons, places and recurring objects.

The topic, the tense, the persons (with their pronouns) and a few objects stay the same throughout a document; verbs agree
with their subjects. Templates and word lists are defined here; names and places come from Faker.
"""

from __future__ import annotations

from collections.abc import Sequence

from metapt.data.demo_english_forms import fix_articles, inflection
from metapt.data.demo_grammar import Sampler, TaggedWord, alternatives, entity, expand, sentence_case

REGIONS = ("en", "en", "en", "en", "en", "en", "ph", "sk")
PRONOUNS = {"m": ("he", "him", "his"), "f": ("she", "her", "her")}

# Topics: roles of persons, objects (countable nouns), verbs, adjectives, locations.
TOPICS = (
    (
        "farmer shepherd miller gardener",
        "plough barn cow horse goat fence seed cart bucket orchard tractor gate",
        "mend feed buy sell clean water paint lead",
        "old muddy green heavy dry",
        "field yard stable valley mill",
    ),
    (
        "sailor fisherman captain diver",
        "boat net sail anchor rope lantern crab fish compass chart oar wave",
        "catch pull repair drop tie follow watch lose",
        "wet salty deep calm rusty",
        "harbour beach island pier lighthouse",
    ),
    (
        "teacher pupil student librarian",
        "book pencil lesson exam letter desk notebook story question poem page word",
        "read write explain copy learn remember forget study",
        "difficult long clever boring short",
        "classroom library hall playground corridor",
    ),
    (
        "cook baker waiter butcher",
        "loaf soup cake oven knife plate onion egg pie apple spoon bowl",
        "bake cut stir taste serve burn wash peel",
        "sweet hot fresh bitter warm",
        "kitchen market cellar bakery restaurant",
    ),
    (
        "mayor clerk minister voter",
        "law vote speech tax election report street bridge plan meeting budget promise",
        "sign support reject discuss change announce delay accept",
        "public new strict expensive secret",
        "office square station chamber courthouse",
    ),
    (
        "doctor nurse patient surgeon",
        "pill wound bandage needle bed test fever cough bottle blanket chair scan",
        "treat check examine bring order cover count move",
        "painful clean serious white small",
        "ward clinic hospital pharmacy ambulance",
    ),
    (
        "singer drummer violinist composer",
        "song drum violin tune concert guitar melody trumpet piano record chorus flute",
        "play hear perform record practise praise finish begin",
        "loud slow sad famous gentle",
        "theatre studio stage garden festival",
    ),
    (
        "coach player goalkeeper runner",
        "ball goal match race medal shirt whistle trophy pass kick game flag",
        "kick win throw hold miss score show follow",
        "fast tired strong final lucky",
        "stadium gym track pitch tent",
    ),
    (
        "scientist astronomer chemist engineer",
        "star telescope experiment sample engine robot theory planet rocket magnet lens battery",
        "measure observe test describe build invent study draw",
        "bright tiny strange distant exact",
        "laboratory observatory museum workshop desert",
    ),
    (
        "guide traveller driver porter",
        "train ticket suitcase road tent map coat river mountain bus passport camera",
        "carry find lose pack cross leave choose see",
        "cold narrow early steep empty",
        "forest hotel village airport camp",
    ),
    (
        "merchant tailor shopkeeper customer",
        "coin scarf hat button price basket lamp carpet ring mirror shoe clock",
        "sell buy weigh offer wrap order sew hide",
        "cheap rare blue broken golden",
        "shop warehouse bank fair arcade",
    ),
    (
        "detective judge witness lawyer",
        "clue window footprint key letter trial photograph door lie crime safe note",
        "find follow prove hide study break open question",
        "dark guilty honest hidden quiet",
        "court prison alley cellar roof",
    ),
)

VERBS = alternatives(
    "be, live, come, work, own, have, meet, know, like, want, go, ask, help, stand, lie, say, think, buy, write, give, "
    "leave, thank"
)
RULES: dict[str, list[str]] = {
    "opening": [
        "{hero} {be:t} a {role} in {town} .",
        "{hero} and {friend} {live:tp} near the {spot} of {town} .",
        "In {month} {year} , {hero} {come:t} to {town} , where {he} {work:t} as a {role} .",
        "There {be:t} once a {quality} {spot} in {town} , and {hero} {own:t} it .",
        "The {role} {hero} {work:t} for {org} in {town} .",
        "{org} {have:t} a new {role} , {hero} from {town} .",
        "On {day} , {hero} {meet:t} {friend} at the {spot} .",
        "{town} {be:t} known for its {thing:pl} , and {hero} {know:t} them best .",
        "Dear {friend_short} , {hero} {have:t} good news from {town} .",
    ],
    "body": [
        "{who} {verb:t} {what} {tail} .",
        "{who} {verb:t} {what} and {verb:t} {what} .",
        "{who} {verb:t} {what} because {he} {like:t} the {quality} {thing} .",
        "{when} , {who} {verb:t} {what} .",
        "{when} , {who} {verb:t} {what} , but {friend_short} {verb:t} {what} .",
        "{hero_short} {want:t} to {verb:base} {what} , so {he} {go:t} to the {spot} .",
        "{hero_short} {ask:t} {friend_short} to {verb:base} {what} .",
        "{friend_short} {help:t} {him} to {verb:base} {what} .",
        "{friend_short} {not} {verb:base} {what} , and {hero_short} {be:t} {feeling} .",
        "{who} {not} {verb:base} {what} {tail} .",
        "The {thing} {be:t} {quality} and the {thing:pl} {be:tp} {quality} .",
        "The {thing:pl} in the {spot} {be:tp} {adverb} {quality} .",
        "The {thing} near the {thing:pl} {be:t} {adverb} {quality} .",
        "{number} {thing:pl} {stand:tp} in the {spot} .",
        "A {quality} {thing} {lie:t} near the {spot} .",
        "The {role:pl} of {town} {verb:tp} {what} {tail} .",
        "The {role:pl} {verb:tp} {number} {thing:pl} for {org} .",
        "The {thing} {be:t} {verb:pp} by {hero_short} , and the {thing:pl} {be:tp} {verb:pp} by {friend_short} .",
        "{hero_short} {have:t} more {thing:pl} than {friend_short} , but {his2} {thing:pl} {be:tp} {quality} .",
        "{who} , who {verb:t} {what} , {be:t} {feeling} .",
        "The {thing} that {friend_short} {verb:t} {be:t} {adverb} {quality} .",
        "While {hero_short} {be:t} {verb:ing} {what} , {friend_short} {verb:t} {what} .",
        "When {friend_short} {come:t} to the {spot} , {he2} {verb:t} {what} .",
        "If the {thing} {be:t} {quality} , {who} {never} {verb:t} it .",
        '" Where {be:t} the {thing} ? " {ask:t} {friend_short} .',
        '" The {thing} {be:t} in the {spot} , " {say:t} {hero_short} .',
        '" Do not {verb:base} the {thing} ! " {say:t} {he2} .',
        '" We {verb:base} {what} every {day} , " {say:t} the {role} to {friend_short} .',
        "{hero_short} {think:t} that {friend_short} {verb:t} {what} .",
        "{he} {say:t} that {town} {be:t} {quality} in {month} .",
        "{other} of {org} {say:t} that the {thing:pl} {be:tp} {quality} .",
        "{other} , a {role} from {LOC} , {verb:t} {what} .",
        "{org} {verb:t} {what} in {month} .",
        "{org} {buy:t} {number} {thing:pl} from {ORG} .",
        "{hero_short} {go:t} from {town} to {LOC} with {friend_short} .",
        "It {be:t} {number} {unit:pl} from {town} to {LOC} .",
        "In {LOC} , the {thing:pl} {be:tp} {quality} .",
        "{hero_short} {write:t} a letter to {other} about the {thing} .",
        "{friend} {work:t} for {ORG} in {LOC} .",
        "{he} {give:t} {him2} {number} {thing:pl} and a {quality} {thing} .",
        "{he} {never} {verb:t} {what} without {friend_short} .",
        "The English {role} and the French {role} {verb:tp} {what} .",
        "Every {role} in the {spot} {know:t} how to {verb:base} a {thing} .",
        "No {role} {verb:t} a {thing} in {month} .",
    ],
    "closing": [
        "In the end , {hero_short} {verb:t} {what} and {go:t} home .",
        "After {number} {unit:pl} , {friend_short} {leave:t} {town} .",
        "{hero_short} and {friend_short} {be:tp} {feeling} .",
        "That {be:t} the last {thing} of {hero_short} .",
        "Since then , {who} {never} {verb:t} {what} .",
        "{he} {thank:t} {friend_short} , and the {role:pl} {go:tp} home .",
    ],
    "who": [
        "{hero_short}",
        "{hero_short}",
        "{he}",
        "{he}",
        "{he}",
        "{friend_short}",
        "the {role}",
        "the {quality} {role}",
    ],
    "what": [
        "the {thing}",
        "the {thing}",
        "the {quality} {thing}",
        "a {thing}",
        "a {quality} {thing}",
        "{number} {thing:pl}",
        "{his} {thing}",
        "some {quality} {thing:pl}",
        "the {thing} and the {thing}",
        "the {thing} of {friend_short}",
    ],
    "tail": [
        "in the {spot}",
        "near the {spot}",
        "behind the {quality} {spot}",
        "in {town}",
        "on {day}",
        "in {month}",
        "with {friend_short}",
        "for {org}",
        "{adverb}",
        "with a {quality} {thing}",
    ],
    "when": [
        "In the morning",
        "In the evening",
        "On {day}",
        "After {number} {unit:pl}",
        "One day",
        "Before the {thing}",
        "In {month} {year}",
        "At the {spot}",
        "Later",
    ],
    "feeling": alternatives(
        "happy, sad, angry, tired, proud, afraid, very happy, not sad, hungry, surprised"
    ),
    "adverb": alternatives("slowly, quickly, carefully, often, always, again, almost, suddenly, too, very"),
    "never": ["never", "always", "often", "sometimes"],
    "number": alternatives("two, three, four, five, six, seven, ten, twelve, twenty, many, several, few"),
    "unit": alternatives("hour, day, week, month, year, mile"),
    "day": alternatives("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "month": alternatives("January, February, March, April, May, June, July, August, October, December"),
    "year": alternatives("1848, 1901, 1912, 1936, 1958, 1969, 1984, 1999, 2003, 2017"),
    **{verb: [verb] for verb in VERBS},
}
THINGS_PER_DOCUMENT = 6  # of the objects of its topic


def sample_name(sampler: Sampler, symbol: str, form: str, region: str = "en") -> list[TaggedWord]:
    """Sample a PER, LOC or ORG of a region."""
    if symbol == "PER":
        return entity("PER", sampler.person(region, sampler.pick("mf"), full=0.6, last=0.15))
    if symbol == "LOC":
        return entity("LOC", sampler.place(region))
    last, place = sampler.last_name(region, "m"), sampler.place(region)
    shapes = (
        f"{last} {sampler.pick(('Group', 'Brothers', 'Industries', 'Press', 'Trust'))}",
        f"University of {place}",
        f"{place} {sampler.pick(('Bank', 'Museum', 'Hospital', 'Times', 'United', 'Council'))}",
        sampler.acronym(),
        last,
    )
    return entity("ORG", sampler.pick(shapes))


def sample_document(sampler: Sampler) -> list[list[TaggedWord]]:
    """Sample a document as a list of tagged sentences: an opening, 5 to 12 sentences, a closing."""
    region = sampler.pick(REGIONS)
    roles, things, verbs, qualities, spots = (words.split() for words in sampler.pick(TOPICS))
    hero, hero_short, (he, him, his) = _sample_person(sampler, region)
    friend, friend_short, (he2, him2, his2) = _sample_person(sampler, region)
    past = sampler.coin(0.6)

    def sample_local_name(sampler: Sampler, symbol: str, form: str) -> list[TaggedWord]:
        return sample_name(sampler, symbol, form, region if sampler.coin(0.7) else "en")

    rules: dict[str, Sequence[str | list[TaggedWord]]] = {
        **RULES,
        "not": ["did not" if past else "does not"],
        "role": sampler.sample(roles, 2),
        "thing": sampler.sample(things, THINGS_PER_DOCUMENT),
        "verb": verbs,
        "quality": sampler.sample(qualities, 4),
        "spot": sampler.sample(spots, 3),
        "hero": [hero],
        "hero_short": [hero_short],
        "friend": [friend],
        "friend_short": [friend_short],
        "town": [sample_local_name(sampler, "LOC", "")],
        "org": [sample_local_name(sampler, "ORG", "")],
        "other": [sample_local_name(sampler, "PER", "") for _ in range(2)],
        **{key: [value] for key, value in {"he": he, "him": him, "his": his}.items()},
        **{key: [value] for key, value in {"he2": he2, "him2": him2, "his2": his2}.items()},
    }
    symbols = ["opening", *["body"] * (5 + sampler.integer(8)), "closing"]
    sentences = (expand(symbol, rules, sampler, sample_local_name, inflection(past)) for symbol in symbols)
    return [fix_articles(sentence_case(words)) for words in sentences]


def _sample_person(
    sampler: Sampler, region: str
) -> tuple[list[TaggedWord], list[TaggedWord], tuple[str, str, str]]:
    """Sample a person: the full name, the short name used later (first or last name), pronouns."""
    gender = sampler.pick("mf")
    first, last = sampler.first_name(region, gender), sampler.last_name(region, gender)
    short = last if sampler.coin(0.2) else first
    return entity("PER", f"{first} {last}"), entity("PER", short), PRONOUNS[gender]
