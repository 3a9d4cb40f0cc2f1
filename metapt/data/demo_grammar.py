"""The machinery of the generated data: seeded draws, names and places, and a small rewriting grammar."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from faker import Faker

from metapt import randomness

Item = TypeVar("Item")
SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")
CONSONANTS, VOWELS = "BCDFGKLMNPRST", "AEIO"


class Word(NamedTuple):
    """A word and its IOB2 tag."""

    text: str
    tag: str


def entity(kind: str, text: str) -> list[Word]:
    """The words of an entity of type PER, ORG or LOC."""
    return [Word(part, f"{'I' if position else 'B'}-{kind}") for position, part in enumerate(text.split())]


def listed(text: str) -> list[str]:
    """The alternatives in a text that divides them by a comma and a blank."""
    return text.split(", ")


class Draws:
    """Choices, names and places for one item after the other.

    What is drawn after `restart(number)` is a function of seed, purpose and number, and of Faker's lists. These may
    change with Faker's version, so data are identified by their content, not by the seed.
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

    def below(self, bound: int) -> int:
        return int(self._generator.integers(bound))

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def some(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different items (by position), in random order."""
        return [items[index] for index in self._generator.permutation(len(items))[:count]]

    def chance(self, probability: float) -> bool:
        return bool(self._generator.random() < probability)

    def first_name(self, region: str, gender: str) -> str:
        """A first name of one word; region `en`, `sk` or `ph` (English and Spanish ones mixed), gender `m` or `f`."""
        if region == "sk":
            faker = self._slovak
        else:
            faker = self._spanish if region == "ph" and self.chance(0.5) else self._english
        return (faker.first_name_male() if gender == "m" else faker.first_name_female()).split()[0]

    def last_name(self, region: str, gender: str) -> str:
        faker = {"en": self._english, "sk": self._slovak, "ph": self._spanish}[region]
        return (faker.last_name_male() if gender == "m" else faker.last_name_female()).split()[0]

    def place(self, region: str) -> str:
        """A town, province, state or country of one to four words, without punctuation."""
        english, filipino = self._english, self._filipino
        makers = {
            "en": (english.city, english.city, english.state, english.country),
            "sk": (self._slovak.city,),
            "ph": (filipino.province_lgu, filipino.province, filipino.metro_manila_lgu),
        }[region]
        while True:
            name = str(self.pick(makers)())
            if len(name.split()) <= 4 and not re.search(r"[(),.&]", name):
                return name

    def acronym(self) -> str:
        """Three or four capital letters."""
        letters = [self.pick(CONSONANTS), self.pick(VOWELS), self.pick(CONSONANTS), self.pick(CONSONANTS)]
        return "".join(letters[: 3 + self.below(2)])

    def person(self, region: str, gender: str, full: float, last: float = 0.0) -> str:
        """First and last name with probability `full`, a last name alone with `last`, else a first name."""
        first = self.first_name(region, gender)
        if self.chance(full):
            return f"{first} {self.last_name(region, gender)}"
        return self.last_name(region, gender) if self.chance(last / (1 - full)) else first


Rules = Mapping[str, Sequence[str | list[Word]]]
Inflection = Callable[[str, str], str]
Naming = Callable[[Draws, str, str], list[Word]]


def expand(
    symbol: str, rules: Rules, draws: Draws, name: Naming, inflect: Inflection | None = None
) -> list[Word]:
    """Rewrites a symbol to words with tags.

    An alternative of a rule is a text of words and slots, divided by blanks, or ready words. A slot `{symbol}` is
    rewritten in turn, by its rule, or, without one, by `name(draws, symbol, form)`; `{symbol:form}` takes an alternative
    without slots and inflects it.
    """
    alternative = draws.pick(rules[symbol])
    if not isinstance(alternative, str):
        return alternative
    words: list[Word] = []
    for part in alternative.split():
        slot = SLOT.fullmatch(part)
        if slot is None:
            words.append(Word(part, "O"))
        elif slot[1] not in rules:
            words += name(draws, slot[1], slot[2] or "")
        elif slot[2] and inflect:
            words += [Word(inflect(str(draws.pick(rules[slot[1]])), slot[2]), "O")]
        else:
            words += expand(slot[1], rules, draws, name, inflect)
    return words


def sentence_case(words: Sequence[Word]) -> list[Word]:
    """The words with a capital at the beginning (after an opening quote)."""
    first = next(position for position, word in enumerate(words) if word.text[0].isalnum())
    text, tag = words[first]
    return [*words[:first], Word(text[0].upper() + text[1:], tag), *words[first + 1 :]]
