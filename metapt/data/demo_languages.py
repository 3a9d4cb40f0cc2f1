"""Three more languages of the demo, one sentence at a time: Slovak-like, Tagalog-like, Cebuano-like.

They imitate one trait each. Slovak-like names take case endings, and verbs agree with the gender of a person.
In the other two the verb comes first and a case particle stands before most names, but not before those that
are called, named, or second in a pair. Words and templates are written here; names and places come from Faker.
"""

from __future__ import annotations

from metapt.data.demo_grammar import Draws, Naming, Word, entity, expand, sentence_case

# --- Slovak-like -----------------------------------------------------------------------------------------------

SLOVAK: dict[str, list[str]] = {
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
    "time": [
        "v pondelok",
        "v stredu",
        "v nedeľu",
        "ráno",
        "večer",
        "vlani",
        "včera",
        "v apríli",
        "dnes",
        "potom",
    ],
    "came_m": ["prišiel", "išiel", "cestoval", "odišiel", "utekal"],
    "came_f": ["prišla", "išla", "cestovala", "odišla", "utekala"],
    "did_m": ["kúpil", "predal", "našiel", "poslal", "opravil", "stratil", "priniesol", "ukázal", "daroval"],
    "did_f": [
        "kúpila",
        "predala",
        "našla",
        "poslala",
        "opravila",
        "stratila",
        "priniesla",
        "ukázala",
        "darovala",
    ],
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
    "noun_f": ["kniha", "záhrada", "škola", "nemocnica", "správa", "zima", "pieseň", "mapa", "lampa"],
    "noun_m": ["dom", "vlak", "obchod", "zápas", "list", "koncert", "les", "klavír", "trh"],
    "noun_acc": ["knihu", "záhradu", "školu", "správu", "pieseň", "mapu", "lampu"],
    "quality_f": ["nová", "stará", "krásna", "dlhá", "studená", "drahá", "tichá", "veľká"],
    "quality_m": ["nový", "starý", "krásny", "dlhý", "studený", "drahý", "tichý", "veľký"],
    "quality_n": ["nové", "staré", "krásne", "tiché", "veľké", "malé"],
    "quality_acc": ["novú", "starú", "krásnu", "dlhú", "drahú", "veľkú"],
    "role_m": ["učiteľ", "lekár", "kuchár", "starosta", "sused", "vodič", "sudca", "tréner"],
    "role_f": ["učiteľka", "lekárka", "kuchárka", "starostka", "suseda", "speváčka", "sudkyňa"],
}

# Endings that replace the last letter(s) of a name, by (ending, gender or "place"); cases gen, dat, acc, loc, ins.
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
    ("any", "place"): ("ian", "anom", "any", "anoch", "anmi"),
    ("y", "place"): ("", "am", "y", "och", "ami"),
    ("ec", "place"): ("ca", "cu", "ec", "ci", "com"),
}
PLACE_CONSONANT = ("a", "u", "", "e", "om")
CASES = ("gen", "dat", "acc", "loc", "ins")


def decline(word: str, case: str, kind: str) -> str:
    """A Slovak-like name (of a man `m`, a woman `f` or a `place`) in a case; what fits no pattern stays as it is."""
    if case not in CASES:
        return word
    index = CASES.index(case)
    for (ending, of), endings in DECLENSIONS.items():
        hard = ending or word[-1] not in "aeiouyáéíóúý"
        if of == kind and hard and word.endswith(ending):
            return word.removesuffix(ending) + endings[index]
    if kind == "place" and word[-1] not in "aeiouyáéíóúý":
        return word + PLACE_CONSONANT[index]
    return word


def slovak_name(draws: Draws, symbol: str, case: str) -> list[Word]:
    """PERm, PERf or LOC in a case, or an ORG (which is always in the nominative)."""
    if symbol == "LOC":
        return entity("LOC", " ".join(decline(word, case, "place") for word in draws.place("sk").split()))
    if symbol == "ORG":
        last, place = draws.last_name("sk", "m"), draws.place("sk")
        shapes = (
            f"{last} {draws.pick(('Invest', 'Group', 'Slovakia', 'Trade'))}",
            f"Univerzita {place}",
            f"{draws.pick(('Slovenská', 'Prvá', 'Národná'))} {draws.pick(('banka', 'pošta', 'televízia', 'galéria'))}",
            f"Klub {place}",
            draws.acronym(),
            last,
        )
        return entity("ORG", draws.pick(shapes))
    gender = symbol[-1]
    words = draws.person("sk", gender, full=0.4, last=0.2).split()
    return entity("PER", " ".join(decline(word, case, gender) for word in words))


# --- Tagalog-like ----------------------------------------------------------------------------------------------

TAGALOG: dict[str, list[str]] = {
    "sentence": [
        *["{clause} ."] * 6,
        *["{clause} {time} ."] * 2,
        "{plain} .",
        "{plain} {time} .",
        "{question} ?",
        "{call}",
    ],
    "plain": [
        "{did} ng {role} ang {thing}",
        "{acted} ang {role} sa {place}",
        "{quality} ang {thing} ng {role}",
        "nasa {place} ang {thing}",
        "hindi {did} ng {role} ang {quality_link} {thing}",
        "may {quality_link} {thing} sa {place}",
    ],
    "clause": [
        "{acted} si {PER} {where}",
        "{acted} si {PER} ng {thing}",
        "{did} ni {PER} ang {thing}",
        "{did} ni {PER} ang {thing} para kay {PER}",
        "{did} ng {role} ang {thing} sa {LOC}",
        "{did} ni {PER} ang {thing} ni {PER}",
        "ibinigay ni {PER} ang {thing} kay {PER}",
        "{acted} ang {role} {where}",
        "{acted} sina {PER} at {PER} {where}",
        "{quality} si {PER}",
        "{quality} ang {thing} ni {PER}",
        "{quality} ang {thing} sa {LOC}",
        "{quality} ang {place} ng {LOC}",
        "si {PER} ang {role} ng {ORG}",
        "si {PER} ay {role} sa {LOC}",
        "nasa {LOC} si {PER}",
        "malapit kay {PER} ang {thing}",
        "taga- {LOC} si {PER}",
        "nagtatrabaho si {PER} sa {ORG}",
        "nagbukas ang {ORG} ng {place} sa {LOC}",
        "{acted} ang {ORG} ng {thing}",
        "nakita ko si {PER} sa {place}",
        "kilala niya si {PER}",
        "{PER} ang pangalan ng {role}",
        "hindi {acted} si {PER}",
        "{did} niya ang {quality_link} {thing}",
        "may {thing} ang {role} ng {LOC}",
        "pumunta sila sa {LOC} kasama ni {PER}",
    ],
    "question": [
        "nasaan si {PER}",
        "sino ang {role} ng {ORG}",
        "kailan {acted} si {PER}",
        "ano ang {did} ni {PER}",
    ],
    "call": [
        "{PER} , halika dito .",
        "{PER} , nasaan ang {thing} ?",
        "salamat , {PER} .",
        "Ginoong {PER} , {acted} na ang {role} .",
    ],
    "where": ["sa {LOC}", "sa {place}", "sa {place} ng {LOC}", "mula sa {LOC}", "kasama ang {role}"],
    "time": ["kahapon", "ngayon", "kanina", "noong Lunes", "noong Mayo", "bukas"],
    "acted": [
        "kumain",
        "bumili",
        "umalis",
        "dumating",
        "tumakbo",
        "sumulat",
        "umawit",
        "nagluto",
        "naghanap",
        "nagbasa",
    ],
    "did": [
        "binili",
        "kinuha",
        "sinulat",
        "niluto",
        "binasa",
        "hinanap",
        "inayos",
        "ginawa",
        "dinala",
        "nakita",
    ],
    "thing": [
        "aklat",
        "isda",
        "bahay",
        "liham",
        "tinapay",
        "bangka",
        "lapis",
        "bulaklak",
        "bola",
        "mangga",
        "awit",
        "mapa",
    ],
    "role": [
        "guro",
        "doktor",
        "mangingisda",
        "bata",
        "pangulo",
        "nars",
        "kapitan",
        "babae",
        "magsasaka",
        "estudyante",
    ],
    "place": ["palengke", "paaralan", "simbahan", "ospital", "dagat", "bukid", "aklatan", "tulay"],
    "quality": ["maganda", "mabait", "malaki", "masaya", "matanda", "mahal", "bago", "tahimik"],
    "quality_link": ["magandang", "malaking", "bagong", "lumang", "maliit na", "mahal na"],
}

# --- Cebuano-like ----------------------------------------------------------------------------------------------

CEBUANO: dict[str, list[str]] = {
    "sentence": [
        *["{clause} ."] * 6,
        *["{time} {clause} ."] * 2,
        "{plain} .",
        "{time} {plain} .",
        "{question} ?",
        "{call}",
    ],
    "plain": [
        "{did} sa {role} ang {thing}",
        "{acted} ang {role} sa {place}",
        "{quality} ang {thing} sa {role}",
        "naa sa {place} ang {thing}",
        "wala {did} sa {role} ang {quality} nga {thing}",
        "adunay {quality} nga {thing} sa {place}",
    ],
    "clause": [
        "{acted} si {PER} {where}",
        "{acted} si {PER} og {thing}",
        "{did} ni {PER} ang {thing}",
        "{did} ni {PER} ang {thing} alang kang {PER}",
        "{did} sa {role} ang {thing} sa {LOC}",
        "{did} ni {PER} ang {thing} ni {PER}",
        "gihatag ni {PER} ang {thing} kang {PER}",
        "{acted} ang {role} {where}",
        "{acted} silang {PER} ug {PER} {where}",
        "{quality} si {PER}",
        "{quality} ang {thing} ni {PER}",
        "{quality} ang {thing} sa {LOC}",
        "{quality} ang {place} sa {LOC}",
        "si {PER} ang {role} sa {ORG}",
        "tua sa {LOC} si {PER}",
        "naa sa {place} ang {thing} ni {PER}",
        "taga {LOC} si {PER}",
        "nagtrabaho si {PER} sa {ORG}",
        "nagbukas ang {ORG} og {place} sa {LOC}",
        "{acted} ang {ORG} og {thing}",
        "nakita nako si {PER} sa {place}",
        "nailhan niya si {PER}",
        "{PER} ang ngalan sa {role}",
        "wala {acted} si {PER}",
        "{did} niya ang {quality} nga {thing}",
        "adunay {thing} ang {role} sa {LOC}",
        "miadto sila sa {LOC} uban ni {PER}",
    ],
    "question": [
        "asa si {PER}",
        "kinsa ang {role} sa {ORG}",
        "kanus-a {acted} si {PER}",
        "unsa ang {did} ni {PER}",
    ],
    "call": [
        "{PER} , ari diri .",
        "{PER} , asa ang {thing} ?",
        "salamat , {PER} .",
        "Manong {PER} , {acted} na ang {role} .",
    ],
    "where": ["sa {LOC}", "sa {place}", "sa {place} sa {LOC}", "gikan sa {LOC}", "uban sa {role}"],
    "time": ["kagahapon", "karon", "ganiha", "sa Lunes", "sa Mayo", "ugma"],
    "acted": [
        "mikaon",
        "mipalit",
        "milakaw",
        "miabot",
        "midagan",
        "misulat",
        "mikanta",
        "nagluto",
        "nangita",
        "mibasa",
    ],
    "did": [
        "gipalit",
        "gikuha",
        "gisulat",
        "giluto",
        "gibasa",
        "gipangita",
        "giayo",
        "gihimo",
        "gidala",
        "gitawag",
    ],
    "thing": [
        "libro",
        "isda",
        "balay",
        "sulat",
        "tinapay",
        "sakayan",
        "lapis",
        "bulak",
        "bola",
        "mangga",
        "awit",
        "mapa",
    ],
    "role": [
        "magtutudlo",
        "doktor",
        "mananagat",
        "bata",
        "presidente",
        "nars",
        "kapitan",
        "babaye",
        "mag-uuma",
        "estudyante",
    ],
    "place": ["merkado", "eskwelahan", "simbahan", "ospital", "dagat", "uma", "librarya", "taytayan"],
    "quality": ["nindot", "buotan", "dako", "malipayon", "tigulang", "mahal", "bag-o", "hilom"],
}


def philippine_name(linker: str) -> Naming:
    """PER, LOC and ORG for a language that says `University <linker> <place>`; most persons have one word."""

    def name(draws: Draws, symbol: str, form: str) -> list[Word]:
        if symbol == "PER":
            return entity("PER", draws.person("ph", draws.pick("mf"), full=0.25, last=0.05))
        if symbol == "LOC":
            return entity("LOC", draws.place("ph"))
        shapes = (
            f"{draws.pick(('Unibersidad', 'Kolehiyo', 'Museo', 'Ospital'))} {linker} {draws.place('ph')}",
            f"{draws.last_name('ph', 'm')} {draws.pick(('Corporation', 'Foundation', 'Bank'))}",
            draws.acronym(),
        )
        return entity("ORG", draws.pick(shapes))

    return name


LANGUAGES: dict[str, tuple[dict[str, list[str]], Naming]] = {
    "sk": (SLOVAK, slovak_name),
    "tl": (TAGALOG, philippine_name("ng")),
    "ceb": (CEBUANO, philippine_name("sa")),
}


def sentence(language: str, draws: Draws) -> list[Word]:
    """One sentence of a language of LANGUAGES."""
    rules, name = LANGUAGES[language]
    return sentence_case(expand("sentence", rules, draws, name))
