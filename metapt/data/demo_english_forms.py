"""English morphology and punctuation for the English-like demo language."""

from __future__ import annotations

from metapt.data.demo_grammar import Inflection, TaggedWord

IRREGULAR = {
    form.split()[0]: form.split()[1:]
    for form in [
        "begin began begun",
        "break broke broken",
        "bring brought brought",
        "build built built",
        "buy bought bought",
        "catch caught caught",
        "choose chose chosen",
        "come came come",
        "cut cut cut",
        "draw drew drawn",
        "feed fed fed",
        "find found found",
        "forget forgot forgotten",
        "give gave given",
        "go went gone",
        "have had had",
        "hear heard heard",
        "hide hid hidden",
        "hold held held",
        "know knew known",
        "lead led led",
        "leave left left",
        "lie lay lain",
        "lose lost lost",
        "meet met met",
        "read read read",
        "say said said",
        "see saw seen",
        "sell sold sold",
        "sew sewed sewn",
        "show showed shown",
        "stand stood stood",
        "think thought thought",
        "throw threw thrown",
        "win won won",
        "write wrote written",
    ]
}
DOUBLED = {"begin", "cut", "drop", "forget", "stir", "wrap", "win"}
ING = {"lie": "lying", "tie": "tying", "see": "seeing"}
PLURALS = {"fish": "fish", "loaf": "loaves", "knife": "knives", "fisherman": "fishermen"}


def inflection(past: bool) -> Inflection:
    """The inflection function of a document: `t` and `tp` are its tense with a singular and a plural subject."""

    tense = {"t": "past", "tp": "past"} if past else {"t": "s", "tp": "base"}
    be = {"t": "was", "tp": "were"} if past else {"t": "is", "tp": "are"}

    def inflect(word: str, form: str) -> str:
        if form == "pl":
            return PLURALS.get(word) or add_s(word)
        return be[form] if word == "be" else verb_form(word, tense.get(form, form))

    return inflect


def add_s(word: str) -> str:
    """The plural of a noun, or the third person singular of a verb."""
    if word == "have":
        return "has"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh", "go")) else "s")


def verb_form(verb: str, form: str) -> str:
    """A form of a verb: `base`, `s` (third person singular), `past`, `pp` (past participle) or `ing`."""
    stem = verb + verb[-1] if verb in DOUBLED else verb
    if form == "base":
        return verb
    if form == "s":
        return add_s(verb)
    if form == "ing":
        return ING.get(verb) or stem.removesuffix("e") + "ing"
    if verb in IRREGULAR:
        return IRREGULAR[verb][form == "pp"]
    if stem.endswith("y") and stem[-2] not in "aeiou":
        return stem[:-1] + "ied"
    return stem + ("d" if stem.endswith("e") else "ed")


def fix_articles(words: list[TaggedWord]) -> list[TaggedWord]:
    """Replace `a` by `an` before a vowel."""
    following = [*(word.text[0].lower() for word in words[1:]), ""]
    return [
        TaggedWord(word.text + "n", word.tag)
        if word.text in ("a", "A") and letter and letter in "aeiou"
        else word
        for word, letter in zip(words, following, strict=True)
    ]


def detokenize(words: list[TaggedWord]) -> str:
    """Join words to text, without a space before punctuation and inside quotation marks."""
    text, open_quote = "", False
    for word in words:
        if word.text == '"':
            text += '"' if open_quote else ' "'
            open_quote = not open_quote
        elif word.text in ".,?!" or text.endswith(' "'):
            text += word.text
        else:
            text += f" {word.text}"
    return text.strip()
