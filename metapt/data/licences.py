"""Languages and licences of the known labelled sets.

Those of Universal NER v1 are from its repositories (github.com/UniversalNER): a set has the licence of its treebank.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SetFacts:
    """Language (BCP 47), licence (identifier of the Hugging Face hub) and hub data set of a labelled set."""

    language: str
    licence: str
    hub_name: str | None

    @property
    def is_non_commercial(self) -> bool:
        return "-nc" in self.licence


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


def shared_licence(names: list[str]) -> str:
    """The common licence of some sets; `other` if their licences differ or one is unknown."""
    licences = {SETS[name].licence if name in SETS else "other" for name in names}
    return licences.pop() if len(licences) == 1 else "other"
