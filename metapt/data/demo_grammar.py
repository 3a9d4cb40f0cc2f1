"""The generator of the demo data: a seeded sampler of choices, names and places, and a small rewriting grammar."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from faker import Faker

from metapt import randomness

Item = TypeVar("Item")
SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")
CONSONANTS, VOWELS = "BCDFGKLMNPRST", "AEIO"


class TaggedWord(NamedTuple):
    """A word and its IOB2 tag."""

    text: str
    tag: str


def entity(entity_type: str, text: str) -> list[TaggedWord]:
    """The words of an entity of type PER, ORG or LOC."""
    return [
        TaggedWord(part, f"{'I' if position else 'B'}-{entity_type}")
        for position, part in enumerate(text.split())
    ]


def alternatives(text: str) -> list[str]:
    """Split a text at each comma followed by a space."""
    return text.split(", ")


class Sampler:
    """Samples choices, names and places for one item after the other.

    After `restart(number)` the samples are a function of seed, purpose, number and Faker's word lists. The lists may
    change with the version of Faker, so data are identified by their content, not by the seed.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self._seed, self._purpose = seed, purpose
        self._english, self._spanish, self._slovak, self._filipino = map(
            Faker, ("en_US", "es_MX", "sk_SK", "fil_PH")
        )

        self.restart(0)

    def restart(self, number: int) -> None:
        self._generator = randomness.generator(self._seed, self._purpose, number)
        for index, faker in enumerate((self._english, self._spanish, self._slovak, self._filipino)):
            faker.seed_instance(randomness.key(self._seed, f"{self._purpose}, names", number, index))

    def integer(self, bound: int) -> int:
        """A random integer in [0, bound)."""
        return int(self._generator.integers(bound))

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.integer(len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` items at different positions, in random order."""
        return [items[index] for index in self._generator.permutation(len(items))[:count]]

    def coin(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self._generator.random() < probability)

    def first_name(self, region: str, gender: str) -> str:
        """A first name of one word. Regions are `en`, `sk` and `ph` (English or Spanish names); genders `m` and `f`."""
        if region == "sk":
            faker = self._slovak
        else:
            faker = self._spanish if region == "ph" and self.coin(0.5) else self._english
        return (faker.first_name_male() if gender == "m" else faker.first_name_female()).split()[0]

    def last_name(self, region: str, gender: str) -> str:
        faker = {"en": self._english, "sk": self._slovak, "ph": self._spanish}[region]
        return (faker.last_name_male() if gender == "m" else faker.last_name_female()).split()[0]

    def place(self, region: str) -> str:
        """A town, province, state or country of one to four words, without punctuation."""
        english, filipino = self._english, self._filipino
        generators = {
            "en": (english.city, english.city, english.state, english.country),
            "sk": (self._slovak.city,),
            "ph": (filipino.province_lgu, filipino.province, filipino.metro_manila_lgu),
        }[region]
        while True:
            name = str(self.pick(generators)())
            if len(name.split()) <= 4 and not re.search(r"[(),.&]", name):
                return name

    def acronym(self) -> str:
        """Three or four capital letters."""
        letters = [self.pick(CONSONANTS), self.pick(VOWELS), self.pick(CONSONANTS), self.pick(CONSONANTS)]
        return "".join(letters[: 3 + self.integer(2)])

    def person(self, region: str, gender: str, full: float, last: float = 0.0) -> str:
        """First and last name with probability `full`, only a last name with probability `last`, else a first name."""
        first = self.first_name(region, gender)
        if self.coin(full):
            return f"{first} {self.last_name(region, gender)}"
        return self.last_name(region, gender) if self.coin(last / (1 - full)) else first


Rules = Mapping[str, Sequence[str | list[TaggedWord]]]
Inflection = Callable[[str, str], str]
NameSampler = Callable[[Sampler, str, str], list[TaggedWord]]


def expand(
    symbol: str, rules: Rules, sampler: Sampler, sample_name: NameSampler, inflect: Inflection | None = None
) -> list[TaggedWord]:
    """Expand a symbol to tagged words.

    A rule has alternatives, one of which is sampled. An alternative is a list of tagged words, or a text of words and
    slots separated by spaces. A slot `{symbol}` is expanded by its rule, or, if it has none, by
    `sample_name(sampler, symbol, form)`. A slot `{symbol:form}` is replaced by an inflected alternative without slots.
    """
    alternative = sampler.pick(rules[symbol])
    if not isinstance(alternative, str):
        return alternative
    words: list[TaggedWord] = []
    for part in alternative.split():
        slot = SLOT.fullmatch(part)
        if slot is None:
            words.append(TaggedWord(part, "O"))
        elif slot[1] not in rules:
            words += sample_name(sampler, slot[1], slot[2] or "")
        elif slot[2] and inflect:
            words += [TaggedWord(inflect(str(sampler.pick(rules[slot[1]])), slot[2]), "O")]
        else:
            words += expand(slot[1], rules, sampler, sample_name, inflect)
    return words


def sentence_case(words: Sequence[TaggedWord]) -> list[TaggedWord]:
    """Capitalize the first word (after an opening quotation mark)."""
    first = next(position for position, word in enumerate(words) if word.text[0].isalnum())
    text, tag = words[first]
    return [*words[:first], TaggedWord(text[0].upper() + text[1:], tag), *words[first + 1 :]]
