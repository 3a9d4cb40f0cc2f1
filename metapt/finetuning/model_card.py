"""The model card of a tagger: origin, scores, use, data and licences, limitations.

All content comes from the run's result.json and from metapt/data/licences.py. The card makes no claim about anything
that was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from metapt.data import DEMO_NOTICE
from metapt.data.licences import SetFacts, set_facts, shared_licence
from metapt.evaluation.bootstrap import LEVEL

SMALL_SET_SPANS = 100  # the card warns of sets with fewer gold spans
POOLING = {
    "first": "emissions = logits[firsts]",
    "last": "emissions = logits[lasts]",
    "mean": "emissions = np.stack([logits[a : b + 1].mean(axis=0) for a, b in zip(firsts, lasts)])",
}
AGGREGATION = {"first": "first", "last": "average", "mean": "average"}  # strategies of transformers' pipeline
NO_LAST = (
    " No strategy takes the last subword of a word, at which this tagger classifies; `average` includes it."
)
VITERBI = """\
crf = model.config.tagger["crf"]
transitions = np.where(crf["allowed_pairs"], crf["transitions"], -np.inf)
best, pointers = np.where(crf["allowed_first"], crf["start"], -np.inf) + emissions[0], []
for row in emissions[1:]:
    scores = best[:, None] + transitions
    best, pointers = scores.max(axis=0) + row, [*pointers, scores.argmax(axis=0)]
path = [int((best + crf["end"]).argmax())]
for pointer in reversed(pointers):
    path.insert(0, int(pointer[path[0]]))"""
ARGMAX = "path = emissions.argmax(axis=1).tolist()"
WITH_METAPT = """\
import metapt

tagger = metapt.load_tagger("path/to/this/folder")
for sentence in tagger.tag(["Pumunta si Maria sa Cebu."]):
    print(sentence.words, sentence.tags, sentence.entities)"""
WITH_TRANSFORMERS = """\
import numpy as np
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

folder = "path/to/this/folder"
model = AutoModelForTokenClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
words = ["Pumunta", "si", "Maria", "sa", "Cebu", "."]
unknown = tokenizer.unk_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id


def split(word):  # into its subwords, and the index of the first that completes a character of the word
    as_text = {{"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}}
    for space in {spaces}:
        encoded = tokenizer(space + word, **as_text)
        spans = encoded.offset_mapping
        if spans and spans[0][1] > 1:
            break  # the space is not a subword of its own
    for position, character in enumerate(space + word):
        overlapping = [index for index, (begin, end) in enumerate(spans) if begin <= position < end]
        if overlapping and not character.isspace():
            return encoded.input_ids, overlapping[-1]
    return encoded.input_ids or [unknown], 0


subwords, first = zip(*map(split, words))
starts = np.cumsum([0, *map(len, subwords)])
firsts, lasts = starts[:-1] + first, starts[1:] - 1
prefix, suffix = model.config.tagger["prefix_tokens"], model.config.tagger["suffix_tokens"]  # special tokens
with torch.no_grad():
    logits = model(torch.tensor([prefix + sum(subwords, []) + suffix])).logits[0].float().numpy()
logits = logits[len(prefix):]
{pooling}
{decoding}
tags = [model.config.id2label[tag] for tag in path]"""


def model_card(
    result: Mapping[str, Any], ner: Mapping[str, Any], *, is_causal: bool, in_transformers: bool
) -> str:
    """Write the README.md of a tagger folder, with the YAML header of the Hugging Face hub.

    Args:
        result: the result.json of the fine-tuning run.
        ner: the keys of metapt.config.NerConfig that the tagger was created with.
        is_causal: whether the fine-tuned model is a decoder, which sees only the left context.
        in_transformers: whether transformers alone loads the tagger (`metapt.tagger.serialization.loads_in_transformers`).
    """
    parts = [
        f"---\n{_header(result, in_transformers).to_yaml()}\n---\n\n# {_name(result)}",
        *([f"**{DEMO_NOTICE}**"] if result["generated_data"] else []),
        f"A named entity tagger ({', '.join(result['types'])}). The base model is {_origin(result['origin'])}. "
        f"[metapt](https://arxiv.org/abs/2509.02160) fine-tuned it on {_tunings(result)} and `ner.head={ner['head']}`. "
        + _selection(result),
        "## Use",
        *_use(ner, in_transformers),
        "## Scores",
        *_scores(result),
        "## Data and licences",
        *_data(result),
        "## Limitations",
        "\n".join(f"- {line}" for line in _limitations(result, ner, is_causal)),
    ]
    return "\n\n".join(parts) + "\n"


def _tunings(result: Mapping[str, Any]) -> str:
    """What it was fine-tuned on, first to last."""
    return ", and then on ".join(
        f"{', '.join(tuning['source_sets'])} ({tuning['train_sentences']:,} sentences) with `tuning={tuning['tuning']}`"
        for tuning in (*result["earlier_tunings"], result)
    )


def _selection(result: Mapping[str, Any]) -> str:
    """Which weights were kept."""
    if result["dev_f1"] is None:
        return f"The number of updates, {result['steps']:,}, was fixed in advance; no dev set was used."
    return (
        f"The weights are those of epoch {result['best_epoch']} of {result['epochs']}, the best on the dev set "
        f"(F1 {result['dev_f1']:.3f})."
    )


def _tuning_sets(result: Mapping[str, Any]) -> list[str]:
    """Every set that it was fine-tuned on, first to last."""
    tunings = (*result["earlier_tunings"], result)
    return list(dict.fromkeys(name for tuning in tunings for name in tuning["source_sets"]))


def _name(result: Mapping[str, Any]) -> str:
    origin = result["origin"]
    words = (origin["model"], origin.get("objective"), result["source"], result["tuning"])
    return "-".join(["metapt", *(word.replace("/", "-") for word in words if word)])


def _header(result: Mapping[str, Any], in_transformers: bool) -> ModelCardData:
    sources = [_facts(name, result) for name in _tuning_sets(result)]
    eval_results = [
        EvalResult(
            task_type="token-classification",
            dataset_type=_facts(name, result).hub_name or name,
            dataset_name=name,
            dataset_config=name,
            dataset_split=scores["split"],
            metric_type="f1",
            metric_name=f"span micro-F1, strict IOB2 ({scores['gold_spans']} gold spans)",
            metric_value=round(scores["f1"], 4),
        )
        for name, scores in result["sets"].items()
        if scores["gold_spans"]
    ]
    tags = ["named-entity-recognition", "metapt"]
    return ModelCardData(
        model_name=_name(result),
        language=sorted({facts.language_tag for facts in sources if facts.language_tag}) or None,
        license=shared_licence(_tuning_sets(result), _custom_sets(result)),
        library_name="transformers" if in_transformers else "metapt",
        pipeline_tag="token-classification",
        tags=[*tags, "synthetic-data"] if result["generated_data"] else tags,
        datasets=sorted({facts.hub_name for facts in sources if facts.hub_name}) or None,
        metrics=["seqeval"],
        eval_results=eval_results or None,
    )


def _origin(origin: Mapping[str, Any]) -> str:
    if "objective" not in origin:
        return f"`{origin['model']}`, about which nothing else is recorded"
    variant = f", variant {origin['variant']}" if origin.get("variant") else ""
    return (
        f"`{origin['model']}`, a decoder with {origin['parameters']:,} parameters pretrained with "
        f"`objective={origin['objective']}` on `data={origin['data']}` ({origin['step']:,} updates, "
        f"seed {origin['seed']}{variant})"
    )


def _use(ner: Mapping[str, Any], in_transformers: bool) -> Iterator[str]:
    yield "With metapt, in exactly the way in which the tagger was scored:"
    yield _python(WITH_METAPT)
    if not in_transformers:
        yield (
            "transformers alone cannot load this tagger: the architecture has no token-classification class that consists "
            "of this model and one linear layer. Use metapt."
        )
        return
    yield (
        f"With transformers alone. This gives the same tags for sentences of at most {ner['max_len']} subwords; metapt "
        "splits longer sentences into overlapping windows, and truncates words longer than half a window."
    )
    yield _python(
        WITH_TRANSFORMERS.format(
            spaces='(" ", "")' if ner["prefix_space"] else '("",)',
            pooling=POOLING[ner["subword_pooling"]],
            decoding=VITERBI if ner["head"] == "crf" else ARGMAX,
        )
    )
    missing = "the transitions of the CRF" if ner["head"] == "crf" else "metapt's pooling"
    yield (
        f'`pipeline("token-classification", model=folder, aggregation_strategy="{AGGREGATION[ner["subword_pooling"]]}")` '
        f"also works, but less well: it tags words without {missing}, and splits text into words differently from the "
        f"fine-tuning data.{NO_LAST if ner['subword_pooling'] == 'last' else ''}"
    )


def _python(code: str) -> str:
    return f"```python\n{code}\n```"


def _scores(result: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"Span micro-F1 on test splits, strict IOB2 (as in seqeval), with a {LEVEL:.0%} confidence interval over "
        "documents where the set marks them, otherwise over sentences (exact binomial limits with the effective number of "
        "spans). The interval reflects the choice of test sentences, not the random seed of training."
    )
    kinds = list(
        dict.fromkeys(
            [*result["types"], *(kind for scores in result["sets"].values() for kind in scores["per_type"])]
        )
    )
    types = "".join(f" {kind} |" for kind in kinds)
    lines = [
        f"| set | F1 | {LEVEL:.0%} CI | units | precision | recall | gold spans |{types}",
        "|---|---|---|---|---|---|---|" + "---|" * len(kinds),
    ]
    for name, scores in result["sets"].items():
        cells = [name, *_score_cells(scores), f"{scores['gold_spans']:,}"]
        per_type = [scores["per_type"].get(kind) for kind in kinds]
        cells += [
            f"{of_type['f1']:.3f}" if of_type and of_type["gold_spans"] else "-" for of_type in per_type
        ]
        lines.append(f"| {' | '.join(cells)} |")
    yield "\n".join(lines)


def _score_cells(scores: Mapping[str, Any]) -> list[str]:
    if not scores["gold_spans"]:
        return ["-"] * 5  # F1 is undefined without gold spans
    low, high = scores["f1_interval"]
    return [
        f"{scores['f1']:.3f}",
        f"[{low:.3f}, {high:.3f}]",
        f"{scores['units']:,} {scores['unit']}s",
        f"{scores['precision']:.3f}",
        f"{scores['recall']:.3f}",
    ]


def _data(result: Mapping[str, Any]) -> Iterator[str]:
    lines = ["| set | use | language | licence | shared sentences |", "|---|---|---|---|---|"]
    sources = _tuning_sets(result)
    uses = {"Fine-tuning": sources, "Evaluation": list(result["sets"])}
    for name in dict.fromkeys([*sources, *result["sets"]]):
        use = ", ".join(purpose.lower() for purpose, names in uses.items() if name in names)
        facts = _facts(name, result)
        texts = [text or "not recorded" for text in (facts.language, facts.licence)]
        lines.append(f"| {name} | {use} | {' | '.join(texts)} | {_shared(name, result)} |")
    yield "\n".join(lines)
    yield (
        "Shared sentences: sentences of the test split whose words, in any case, are also those of a sentence in the train or "
        "dev split of a fine-tuning set, and the gold spans in them."
    )
    yield (
        "The licence in the header is the common licence of the fine-tuning sets, or `other` if they differ. "
        f"{_text_licence(result['origin'])} Anyone who redistributes the weights must check which terms apply to them."
    )
    for purpose, names in uses.items():
        if non_commercial := [name for name in names if _facts(name, result).is_non_commercial]:
            yield f"{purpose} data licensed for non-commercial use only: {', '.join(non_commercial)}."
        if unknown := [name for name in names if not _facts(name, result).licence]:
            yield f"{purpose} data of unknown licence: {', '.join(unknown)}."


def _facts(name: str, result: Mapping[str, Any]) -> SetFacts:
    return set_facts(name, _custom_sets(result))


def _custom_sets(result: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Language and licence of the sets that this and earlier tunings took from descriptions."""
    tunings = (*result["earlier_tunings"], result)
    return {name: facts for tuning in tunings for name, facts in tuning["custom_sets"].items()}


def _shared(name: str, result: Mapping[str, Any]) -> str:
    if name not in result["sets"]:
        return "-"
    if result["shared_sentences"] is None:
        return "not counted"
    shared, total = result["shared_sentences"][name], result["sets"][name]["sentences"]
    return f"{shared['sentences']:,} of {total:,} ({shared['gold_spans']:,} spans)"


def _text_licence(origin: Mapping[str, Any]) -> str:
    if origin.get("generated_data"):
        return "The pretraining text is synthetic."
    if "data" in origin:
        return (
            f"The pretraining text (`data={origin['data']}`) has its own licence, which is not recorded here."
        )
    return "The pretraining text is not recorded."


def _limitations(result: Mapping[str, Any], ner: Mapping[str, Any], is_causal: bool) -> Iterator[str]:
    sets = result["sets"]
    yield f"It knows only {', '.join(result['types'])}, and no nested entities."
    yield "It was not evaluated on languages, domains or kinds of names beyond the table of scores."
    source_languages = {_language(name, result) for name in _tuning_sets(result)}
    if zero_shot := [name for name in sets if _language(name, result) not in source_languages]:
        yield f"Evaluated in languages that it was not fine-tuned on: {', '.join(zero_shot)}."
    if small := [name for name, scores in sets.items() if scores["gold_spans"] < SMALL_SET_SPANS]:
        yield f"Sets with fewer than {SMALL_SET_SPANS} gold spans, whose F1 is unreliable: {', '.join(small)}."
    yield "The scores are those of one training run with one seed; other seeds give other scores."
    if is_causal:
        crf = " Only the transitions of the CRF use the right context." if ner["head"] == "crf" else ""
        yield f"The decoder reads from left to right, so a word's emissions ignore the words after it.{crf}"
    yield (
        "The scores assume that text is already split into words. Running text is split by rules made for languages "
        "that separate words by spaces; Chinese is split into characters."
    )
    if result["train_sentences_split"]:
        yield (
            f"{result['train_sentences_split']:,} training sentences were longer than {ner['max_len']} subwords, and were trained in "
            "several windows."
        )


def _language(name: str, result: Mapping[str, Any]) -> str:
    """The language of a set without its script; if no tag is known, what a set's name begins with (LANGUAGE_NAME)."""
    tag = _facts(name, result).language_tag or name.partition("_")[0]
    return tag.partition("-")[0]
