"""Case particles of Tagalog and Cebuano, which precede names, and titles. Words are compared in lower case."""

from __future__ import annotations

from collections.abc import Sequence

RULE_PARTICLES = frozenset({"si", "ni"})  # precede names of persons
CASE_PARTICLES = frozenset({"si", "ni", "ang", "ng", "sa"})
TITLES = frozenset(
    # Tagalog, Cebuano and English, as Philippine newspapers write them; a final full stop is ignored
    """
    aling archbishop arsobispo asec ate attorney atty bb bise bishop board brgy bro brother capt captain
    cardinal chair chairman chairperson chief city coach col colonel commissioner cong congressman
    congresswoman councilor councilwoman dating deputy dir director doc doctor doktor doktora don doña dr
    dra engineer engr ex-mayor executive father former fr gen general ginang ginoong gng gob gobernador gov
    governor hari heneral hepe hukom insp inspector judge justice kagawad kalihim kap kapitan kapt kardinal
    kon kong kongresista kongresman konsehal kuya lieutenant lt madam maestra maestro maj major manang mang
    manong mayor miss mr mrs ms nanay obispo officer pangulo pangulong papa paring pastor pinuno po1 po2 po3
    police pope pres president presidente prinsesa prinsipe prof professor propesor punong rep
    representative rev reverend reyna sec secretary sen senador senadora senator senior sgt sir sister
    speaker spo1 spo2 spo3 spo4 sr superintendent supt tatay tita tito tiya tiyo undersecretary usec vice
    vice-governor vice-mayor vice-president
    """.split()  # noqa: SIM905
)


def is_title(word: str) -> bool:
    """Whether a word is a title or a form of address, such as `Mayor` or `Gng.`."""
    return word.lower().removesuffix(".") in TITLES


def follows_particle(start: int, words: Sequence[str]) -> bool:
    """Whether the word directly before word number `start` is a case particle."""
    return start > 0 and words[start - 1].lower() in CASE_PARTICLES
