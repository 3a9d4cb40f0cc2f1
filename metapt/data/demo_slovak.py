"""The Slovak-like demo language: names have case endings, and verbs agree with the gender of a person.

Words and templates are defined here; names and places come from Faker.
"""

from __future__ import annotations

from metapt.data.demo_grammar import Sampler, TaggedWord, alternatives, entity, expand, sentence_case

RULES: dict[str, list[str]] = {
    "sentence": [
        *["{clause} ."] * 3,
        "{time} {clause} .",
        "{clause} , {addition} .",
        "{plain} .",
        "{time} {plain} .",
        "{question} ?",
    ],
    "plain": [
        "{role_m} {did_m} {thing}",
        "{role_f} {did_f} {thing}",
        "{noun_f} je {quality_f} a {noun_m} je {quality_m}",
        "{role_f} {has} {quality_acc} {noun_acc}",
        "{noun_m} bol {quality_m}",
        "nikto nevie , kde je {noun_f}",
        "{role_m} {came_m} domov , lebo {noun_m} bol {quality_m}",
    ],
    "clause": [
        "{PERm} {came_m} do {LOC:gen}",
        "{PERf} {came_f} do {LOC:gen}",
        "{PERm} {did_m} {thing} {PERf:dat}",
        "{PERf} {did_f} {thing} {PERm:dat}",
        "{PERm} pracuje v spoločnosti {ORG}",
        "{PERf} pracuje pre {ORG}",
        "{role_m} {PERm} {did_m} {thing} s {PERf:ins}",
        "{role_f} {PERf} {did_f} {thing} s {PERm:ins}",
        "{role_m} z {LOC:gen} {did_m} {thing}",
        "{role_f} {did_f} {thing} bez {PERm:gen}",
        "v {LOC:loc} bola {quality_f} {noun_f}",
        "v {LOC:loc} bol {quality_m} {noun_m}",
        "{noun_f} {PERm:gen} je {quality_f}",
        "{noun_m} {PERf:gen} je {quality_m}",
        "spoločnosť {ORG} otvorila v {LOC:loc} {quality_acc} pobočku",
        "{ORG} hľadá {thing} v {LOC:loc}",
        "{LOC} je {quality_n} mesto",
        "o {PERf:loc} písal {role_m} z {LOC:gen}",
        "o {PERm:loc} hovorila aj {role_f} {PERf}",
        "videli sme {PERm:acc} a {PERf:acc} pri {LOC:loc}",
        "medzi {LOC:ins} a {LOC:ins} jazdí {quality_m} vlak",
        "{PERm} {has} {quality_acc} {noun_acc} a {noun_m}",
        "{PERf} sa narodila v {LOC:loc}",
        "{PERm} sa vrátil z {LOC:gen} domov",
        "riaditeľom {ORG} je {PERm}",
        "cesta do {LOC:gen} bola {quality_f}",
    ],
    "addition": [
        "ale {PERm} {did_m} {thing}",
        "ale {PERf} {did_f} {thing}",
        "lebo {noun_f} bola {quality_f}",
        "povedal {PERm}",
        "povedala {PERf}",
        "keď {PERf} {came_f} domov",
        "uviedla spoločnosť {ORG}",
    ],
    "question": [
        "kde je {PERm}",
        "kedy {came_f} {PERf}",
        "kto pozná {PERm:acc}",
        "prečo {ORG} hľadá {thing}",
        "videl niekto {PERf:acc} v {LOC:loc}",
        "čo {did_m} {role_m} v {LOC:loc}",
    ],
    "time": alternatives("v pondelok, v stredu, v nedeľu, ráno, večer, vlani, včera, v apríli, dnes, potom"),
    "came_m": alternatives("prišiel, išiel, cestoval, odišiel, utekal"),
    "came_f": alternatives("prišla, išla, cestovala, odišla, utekala"),
    "did_m": alternatives("kúpil, predal, našiel, poslal, opravil, stratil, priniesol, ukázal, daroval"),
    "did_f": alternatives(
        "kúpila, predala, našla, poslala, opravila, stratila, priniesla, ukázala, darovala"
    ),
    "has": ["má", "chce", "hľadá", "vidí"],
    "thing": [
        "knihu",
        "loď",
        "{quality_acc} mapu",
        "starý klavír",
        "dva chleby",
        "list",
        "{quality_acc} lampu",
        "{quality_acc} {noun_acc}",
        "kľúč",
        "päť jabĺk",
    ],
    "noun_f": alternatives("kniha, záhrada, škola, nemocnica, správa, zima, pieseň, mapa, lampa"),
    "noun_m": alternatives("dom, vlak, obchod, zápas, list, koncert, les, klavír, trh"),
    "noun_acc": alternatives("knihu, záhradu, školu, správu, pieseň, mapu, lampu"),
    "quality_f": alternatives("nová, stará, krásna, dlhá, studená, drahá, tichá, veľká"),
    "quality_m": alternatives("nový, starý, krásny, dlhý, studený, drahý, tichý, veľký"),
    "quality_n": alternatives("nové, staré, krásne, tiché, veľké, malé"),
    "quality_acc": alternatives("novú, starú, krásnu, dlhú, drahú, veľkú"),
    "role_m": alternatives("učiteľ, lekár, kuchár, starosta, sused, vodič, sudca, tréner"),
    "role_f": alternatives("učiteľka, lekárka, kuchárka, starostka, suseda, speváčka, sudkyňa"),
}

VOWELS = "aeiouyáéíóúý"
CASES = ("gen", "dat", "acc", "loc", "ins")
# Replacements of an ending in each of CASES, by ending and kind (`m`, `f`, `place`). The empty ending follows a consonant.
DECLENSIONS = {
    ("ová", "f"): ("ovej", "ovej", "ovú", "ovej", "ovou"),
    ("á", "f"): ("ej", "ej", "ú", "ej", "ou"),
    ("ia", "f"): ("ie", "ii", "iu", "ii", "iou"),
    ("a", "f"): ("y", "e", "u", "e", "ou"),
    ("ý", "m"): ("ého", "ému", "ého", "om", "ým"),
    ("a", "m"): ("u", "ovi", "u", "ovi", "om"),
    ("o", "m"): ("a", "ovi", "a", "ovi", "om"),
    ("ek", "m"): ("ka", "kovi", "ka", "kovi", "kom"),
    ("", "m"): ("a", "ovi", "a", "ovi", "om"),
    ("á", "place"): ("ej", "ej", "ú", "ej", "ou"),
    ("ý", "place"): ("ého", "ému", "ý", "om", "ým"),
    ("é", "place"): ("ého", "ému", "é", "om", "ým"),
    ("a", "place"): ("y", "e", "u", "e", "ou"),
    ("o", "place"): ("a", "u", "o", "e", "om"),
    ("ice", "place"): ("íc", "iciam", "ice", "iciach", "icami"),
    ("any", "place"): ("an", "anom", "any", "anoch", "anmi"),
    ("y", "place"): ("", "am", "y", "och", "ami"),
    ("ec", "place"): ("ca", "cu", "ec", "ci", "com"),
    ("", "place"): ("a", "u", "", "e", "om"),
}


def decline(word: str, case: str, kind: str) -> str:
    """Decline the name of a man (`m`), a woman (`f`) or a `place`; a name without a matching pattern is unchanged."""
    if case not in CASES:
        return word
    for (ending, ending_kind), endings in DECLENSIONS.items():
        matches = word.endswith(ending) if ending else word[-1] not in VOWELS
        if ending_kind == kind and matches:
            return word.removesuffix(ending) + endings[CASES.index(case)]
    return word


def sample_name(sampler: Sampler, symbol: str, case: str) -> list[TaggedWord]:
    """Sample a PERm, PERf or LOC in a case, or an ORG (always in the nominative)."""
    if symbol == "LOC":
        return entity("LOC", " ".join(decline(word, case, "place") for word in sampler.place("sk").split()))
    if symbol == "ORG":
        last, place = sampler.last_name("sk", "m"), sampler.place("sk")
        shapes = (
            f"{last} {sampler.pick(('Invest', 'Group', 'Slovakia', 'Trade'))}",
            f"Univerzita {place}",
            f"{sampler.pick(('Slovenská', 'Prvá', 'Národná'))} {sampler.pick(('banka', 'pošta', 'televízia', 'galéria'))}",
            f"Klub {place}",
            sampler.acronym(),
            last,
        )
        return entity("ORG", sampler.pick(shapes))
    gender = symbol[-1]
    words = sampler.person("sk", gender, full=0.4, last=0.2).split()
    return entity("PER", " ".join(decline(word, case, gender) for word in words))


def sample_sentence(sampler: Sampler) -> list[TaggedWord]:
    """Sample one sentence."""
    return sentence_case(expand("sentence", RULES, sampler, sample_name))
