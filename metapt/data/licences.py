"""Languages and licences of labelled sets: the known ones, and those that `data.corpora` describes.

Those of Universal NER v1 are from its repositories (github.com/UniversalNER): a set has the licence of its treebank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

NON_COMMERCIAL = re.compile(r"\bnc\b|non-?\s?commercial", re.IGNORECASE)
LANGUAGE_TAG = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)?")
HUB_LICENCES = frozenset(
    {
        "apache-2.0",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nd-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "gpl-3.0",
        "lgpl-3.0",
        "mit",
    }
)
"""identifiers of the hub that descriptions of labelled sets are likely to name"""

CustomSets = Mapping[str, Mapping[str, str]]
"""language and licence of each set that `data.corpora` describes, as its description spells them"""


@dataclass(frozen=True)
class SetFacts:
    """What is known of a labelled set.

    Attributes:
        language: BCP 47 tag, or as a description spells it; empty if it is not recorded.
        licence: identifier of the Hugging Face hub, or as a description spells it; empty if it is not recorded.
        hub_name: data set on the hub.
    """

    language: str
    licence: str
    hub_name: str | None

    @property
    def is_non_commercial(self) -> bool:
        return NON_COMMERCIAL.search(self.licence) is not None

    @property
    def language_tag(self) -> str | None:
        """The language if it is a BCP 47 tag."""
        return self.language if LANGUAGE_TAG.fullmatch(self.language) else None

    @property
    def hub_licence(self) -> str:
        """The licence as an identifier of the hub: `CC BY 4.0` becomes cc-by-4.0; `other` if it is none of HUB_LICENCES."""
        identifier = "-".join(self.licence.lower().split())
        return identifier if identifier in HUB_LICENCES else "other"


def _uner(language: str, licence: str = "cc-by-sa-4.0") -> SetFacts:
    return SetFacts(language, licence, "universalner/universal_ner")


def _synthetic(language: str) -> SetFacts:
    return SetFacts(language, "apache-2.0", None)


SETS = {
    "ceb_gja": _uner("ceb"),
    "da_ddt": _uner("da"),
    "de_pud": _uner("de", "cc-by-sa-3.0"),
    "en_ewt": _uner("en"),
    "en_pud": _uner("en", "cc-by-sa-3.0"),
    "hr_set": _uner("hr"),
    "pt_bosque": _uner("pt"),
    "pt_pud": _uner("pt", "cc-by-sa-3.0"),
    "ru_pud": _uner("ru", "cc-by-sa-3.0"),
    "sk_snk": _uner("sk"),
    "sr_set": _uner("sr"),
    "sv_pud": _uner("sv"),
    "sv_talbanken": _uner("sv"),
    "tl_trg": _uner("tl"),
    "tl_ugnayan": _uner("tl", "cc-by-nc-sa-4.0"),
    "zh_gsd": _uner("zh-Hant"),
    "zh_gsdsimp": _uner("zh-Hans"),
    "zh_pud": _uner("zh-Hant", "cc-by-sa-3.0"),
    "en_demo": _synthetic("en"),
    "sk_demo": _synthetic("sk"),
    "tl_demo": _synthetic("tl"),
    "ceb_demo": _synthetic("ceb"),
}


def set_facts(name: str, custom_sets: CustomSets) -> SetFacts:
    """The facts of a set. A description takes precedence over a known set of the same name."""
    if name in custom_sets:
        facts = custom_sets[name]
        return SetFacts(facts.get("language", ""), facts.get("licence", ""), None)
    return SETS.get(name, SetFacts("", "", None))


def shared_licence(names: Iterable[str], custom_sets: CustomSets) -> str:
    """The common licence of some sets as an identifier of the hub; `other` if they differ or one is unknown."""
    licences = {set_facts(name, custom_sets).hub_licence for name in names}
    return licences.pop() if len(licences) == 1 else "other"
