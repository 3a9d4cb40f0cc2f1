"""The Tagalog-like and the Cebuano-like demo language.

The verb comes first. A case particle precedes most names (si, ni, kay or kang before persons; ang, ng, og and sa
elsewhere), but not vocatives, names that are introduced, and the second name of a pair. Words and templates are defined
here; names and places come from Faker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from metapt.data.demo_grammar import (
    NameSampler,
    Sampler,
    TaggedWord,
    alternatives,
    entity,
    expand,
    sentence_case,
)

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
    "time": alternatives("kahapon, ngayon, kanina, noong Lunes, noong Mayo, bukas"),
    "acted": alternatives(
        "kumain, bumili, umalis, dumating, tumakbo, sumulat, umawit, nagluto, naghanap, nagbasa"
    ),
    "did": alternatives("binili, kinuha, sinulat, niluto, binasa, hinanap, inayos, ginawa, dinala, nakita"),
    "thing": alternatives(
        "aklat, isda, bahay, liham, tinapay, bangka, lapis, bulaklak, bola, mangga, awit, mapa"
    ),
    "role": alternatives(
        "guro, doktor, mangingisda, bata, pangulo, nars, kapitan, babae, magsasaka, estudyante"
    ),
    "place": alternatives("palengke, paaralan, simbahan, ospital, dagat, bukid, aklatan, tulay"),
    "quality": alternatives("maganda, mabait, malaki, masaya, matanda, mahal, bago, tahimik"),
    "quality_link": alternatives("magandang, malaking, bagong, lumang, maliit na, mahal na"),
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
    "time": alternatives("kagahapon, karon, ganiha, sa Lunes, sa Mayo, ugma"),
    "acted": alternatives(
        "mikaon, mipalit, milakaw, miabot, midagan, misulat, mikanta, nagluto, nangita, mibasa"
    ),
    "did": alternatives(
        "gipalit, gikuha, gisulat, giluto, gibasa, gipangita, giayo, gihimo, gidala, gitawag"
    ),
    "thing": alternatives(
        "libro, isda, balay, sulat, tinapay, sakayan, lapis, bulak, bola, mangga, awit, mapa"
    ),
    "role": alternatives(
        "magtutudlo, doktor, mananagat, bata, presidente, nars, kapitan, babaye, mag-uuma, estudyante"
    ),
    "place": alternatives("merkado, eskwelahan, simbahan, ospital, dagat, uma, librarya, taytayan"),
    "quality": alternatives("nindot, buotan, dako, malipayon, tigulang, mahal, bag-o, hilom"),
}


def name_sampler(linker: str) -> NameSampler:
    """A sampler of PER, LOC and ORG for a language with `University <linker> <place>`; most persons are one word."""

    def sample_name(sampler: Sampler, symbol: str, form: str) -> list[TaggedWord]:
        if symbol == "PER":
            return entity("PER", sampler.person("ph", sampler.pick("mf"), full=0.25, last=0.05))
        if symbol == "LOC":
            return entity("LOC", sampler.place("ph"))
        shapes = (
            f"{sampler.pick(('Unibersidad', 'Kolehiyo', 'Museo', 'Ospital'))} {linker} {sampler.place('ph')}",
            f"{sampler.last_name('ph', 'm')} {sampler.pick(('Corporation', 'Foundation', 'Bank'))}",
            sampler.acronym(),
        )
        return entity("ORG", sampler.pick(shapes))

    return sample_name


def sentence_sampler(
    rules: Mapping[str, Sequence[str]], linker: str
) -> Callable[[Sampler], list[TaggedWord]]:
    """A function that samples one sentence of a language."""
    sample_name = name_sampler(linker)
    return lambda sampler: sentence_case(expand("sentence", rules, sampler, sample_name))


sample_tagalog = sentence_sampler(TAGALOG, "ng")
sample_cebuano = sentence_sampler(CEBUANO, "sa")
