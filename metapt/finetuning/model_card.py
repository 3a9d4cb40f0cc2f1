"""The model card of a tagger: what it was made from, how it scores, under which licences, what it cannot do.

Everything in it comes from the run's result.json (docs/run-folder.md) and from metapt/data/licences.py. What was not measured
is not said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from metapt.data import DEMO_NOTICE
from metapt.data.iob2 import TYPES
from metapt.data.licences import SETS, shared_licence
from metapt.evaluation.bootstrap import LEVEL, RESAMPLES

FEW_SPANS = 100  # a set with fewer gold spans is called small
POOLING = {
    "first": "emissions = logits[starts]",
    "last": "emissions = logits[np.add(starts, [len(each) - 1 for each in subwords])]",
    "mean": "emissions = np.add.reduceat(logits, starts) / [[len(each)] for each in subwords]",
}
VITERBI = """\
crf = model.config.tagger["crf"]
transitions = np.where(crf["allowed_pairs"], crf["transitions"], -np.inf)
best, pointers = np.where(crf["allowed_first"], crf["start"], -np.inf) + emissions[0], []
for row in emissions[1:]:
    through = best[:, None] + transitions
    best, pointers = through.max(axis=0) + row, [*pointers, through.argmax(axis=0)]
path = [int((best + crf["end"]).argmax())]
for pointer in reversed(pointers):
    path.insert(0, int(pointer[path[0]]))"""
ARGMAX = "path = emissions.argmax(axis=1).tolist()"


def model_card(result: Mapping[str, Any], ner: Mapping[str, Any], *, is_causal: bool) -> str:
    """README.md of a tagger's folder, with the hub's YAML header.

    Args:
        result: what result.json holds of the fine-tuning run.
        ner: the keys of metapt.config.NerConfig that the tagger was made with.
        is_causal: whether what is tuned reads from left to right.
    """
    parts = [
        f"---\n{_header(result).to_yaml()}\n---\n\n# {_name(result)}",
        *([f"**{DEMO_NOTICE}**"] if result["generated_data"] else []),
        f"A tagger of named entities ({', '.join(TYPES)}): {_origin(result['origin'])}, tuned by "
        f"[metapt](https://arxiv.org/abs/2509.02160) on {', '.join(result['source_sets'])} (`tuning={result['tuning']}`, "
        f"`ner.head={ner['head']}`, {result['train_sentences']:,} sentences, best of {result['epochs']} epochs: "
        f"{result['best_epoch']}, dev F1 {result['dev_f1']:.3f}).",
        "## Use",
        *_use(ner),
        "## Scores",
        *_scores(result),
        "## Data and licences",
        *_data(result),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(result, ner, is_causal)),
    ]
    return "\n\n".join(parts) + "\n"


def _name(result: Mapping[str, Any]) -> str:
    origin = result["origin"]
    words = (origin["model"], origin.get("objective"), result["source"], result["tuning"])
    return "-".join(["metapt", *(word.replace("/", "-") for word in words if word)])


def _header(result: Mapping[str, Any]) -> ModelCardData:
    known = [SETS[name] for name in result["source_sets"] if name in SETS]
    scored = [
        EvalResult(
            task_type="token-classification",
            dataset_type=(name in SETS and SETS[name].hub_name) or name,
            dataset_name=name,
            dataset_config=name,
            dataset_split=figures["split"],
            metric_type="f1",
            metric_name=f"micro-F1 of spans, strict IOB2; {figures['gold_spans']} gold spans",
            metric_value=round(figures["f1"], 4),
        )
        for name, figures in result["sets"].items()
        if figures["gold_spans"]
    ]
    return ModelCardData(
        model_name=_name(result),
        language=sorted({each.language for each in known}) or None,
        license=shared_licence(result["source_sets"]),
        library_name="transformers",
        pipeline_tag="token-classification",
        tags=[
            "named-entity-recognition",
            "metapt",
            *(["generated-data"] if result["generated_data"] else []),
        ],
        datasets=sorted({each.hub_name for each in known if each.hub_name}) or None,
        metrics=["seqeval"],
        eval_results=scored or None,
    )


def _origin(origin: Mapping[str, Any]) -> str:
    if "objective" not in origin:
        return f"the model `{origin['model']}`, of which nothing else is recorded"
    label = f", variant {origin['variant']}" if origin.get("variant") else ""
    return (
        f"a decoder of {origin['parameters']:,} parameters (`{origin['model']}`) pretrained with "
        f"`objective={origin['objective']}`, seed {origin['seed']}, {origin['step']:,} updates, `data={origin['data']}`{label}"
    )


def _use(ner: Mapping[str, Any]) -> Iterator[str]:
    prefix = '" " + ' if ner["prefix_space"] else ""
    yield "With metapt, exactly as it was scored:"
    yield _python(
        "import metapt",
        "",
        'tagger = metapt.load_tagger("path/to/this/folder")',
        'for sentence in tagger.tag(["Pumunta si Maria sa Cebu."]):',
        "    print(sentence.words, sentence.tags, sentence.entities)",
    )
    yield (
        f"With transformers alone, the same tags, for sentences of at most {ner['max_len']} subwords (metapt reads longer ones "
        "in overlapping windows):"
    )
    yield _python(
        "import numpy as np",
        "import torch",
        "from transformers import AutoModelForTokenClassification, AutoTokenizer",
        "",
        'folder = "path/to/this/folder"',
        "model = AutoModelForTokenClassification.from_pretrained(folder).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        'words = ["Pumunta", "si", "Maria", "sa", "Cebu", "."]',
        "as_text = {'add_special_tokens': False, 'split_special_tokens': True}",
        f"subwords = [tokenizer({prefix}word, **as_text).input_ids for word in words]",
        "*starts, count = np.cumsum([0, *map(len, subwords)])  # each word's first subword, and how many there are",
        "before, after = model.config.tagger['before'], model.config.tagger['after']  # special tokens of an encoder",
        "with torch.no_grad():",
        "    logits = model(torch.tensor([before + sum(subwords, []) + after])).logits[0].float().numpy()[len(before):][:count]",
        POOLING[ner["subword_pooling"]],
        VITERBI if ner["head"] == "crf" else ARGMAX,
        "tags = [model.config.id2label[tag] for tag in path]",
    )
    yield (
        '`pipeline("token-classification", model=folder)` runs too, but shows less: it tags every subword by itself, without '
        f"the {'transitions of the CRF' if ner['head'] == 'crf' else 'choice of a subword'}, and splits text in its own way, "
        "which this tagger was not tuned on."
    )


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _scores(result: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"Micro-F1 of spans on test splits, strict IOB2 (as seqeval counts it), with the {LEVEL:.0%} interval of a percentile bootstrap "
        f"over sentences ({RESAMPLES:,} resamples): how much the figure depends on which sentences are in the set, not on the seed of training."
    )
    types = "".join(f" {kind} |" for kind in TYPES)
    lines = [
        f"| set | F1 | interval | precision | recall | gold spans |{types}",
        "|---|---|---|---|---|---|" + "---|" * len(TYPES),
    ]
    for name, figures in result["sets"].items():
        cells = [name, *_figures(figures), f"{figures['gold_spans']:,}"]
        per_type = [figures["per_type"][kind] for kind in TYPES]
        cells += [f"{each['f1']:.3f}" if each["gold_spans"] else "-" for each in per_type]
        lines.append(f"| {' | '.join(cells)} |")
    yield "\n".join(lines)


def _figures(figures: Mapping[str, Any]) -> list[str]:
    if not figures["gold_spans"]:
        return ["-"] * 4  # no gold span, no F1
    low, high = figures["f1_interval"]
    return [
        f"{figures['f1']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{figures['precision']:.3f}",
        f"{figures['recall']:.3f}",
    ]


def _data(result: Mapping[str, Any]) -> Iterator[str]:
    lines = ["| set | use | language | licence |", "|---|---|---|---|"]
    sources = result["source_sets"]
    for name in dict.fromkeys([*sources, *result["sets"]]):
        use = " and ".join(
            word
            for word, done in (("tuned on", name in sources), ("scored on", name in result["sets"]))
            if done
        )
        language, licence = _language_and_licence(name, result)
        lines.append(f"| {name} | {use} | {language} | {licence} |")
    yield "\n".join(lines)
    yield (
        "The licence in the header is that of the sets it was tuned on, where they share one. The text of pretraining "
        f"{_text_licence(result['origin'])}. Whoever passes the weights on has to judge what follows for them."
    )
    if non_commercial := [name for name in result["sets"] if name in SETS and SETS[name].is_non_commercial]:
        yield f"For non-commercial use only: the data of {', '.join(non_commercial)}, on which it was scored but not tuned."


def _language_and_licence(name: str, result: Mapping[str, Any]) -> tuple[str, str]:
    if name in SETS:
        return SETS[name].language, SETS[name].licence
    told = result["custom_sets"].get(name, {})
    return told.get("language") or "not recorded", told.get("licence") or "not recorded"


def _text_licence(origin: Mapping[str, Any]) -> str:
    if origin.get("generated_data"):
        return "is generated"
    return f"(`data={origin['data']}`) has licences of its own" if "data" in origin else "is not recorded"


def _limits(result: Mapping[str, Any], ner: Mapping[str, Any], is_causal: bool) -> Iterator[str]:
    sets = result["sets"]
    yield f"It knows {', '.join(TYPES)} and no other type, and no entity within another."
    yield "Languages, domains and kinds of names other than those of the table were not measured."
    if zero_shot := [
        name for name in sets if _language(name) not in {_language(each) for each in result["source_sets"]}
    ]:
        yield f"Scored in languages that it was not tuned on: {', '.join(zero_shot)}."
    if small := [name for name, figures in sets.items() if figures["gold_spans"] < FEW_SPANS]:
        yield f"Fewer than {FEW_SPANS} gold spans, so that their F1 says little: {', '.join(small)}."
    yield "One run with one seed; another seed gives other figures."
    if is_causal:
        but = ", only by the CRF's transitions." if ner["head"] == "crf" else "."
        yield f"The decoder reads from left to right: what follows a word is not seen by its emission{but}"
    yield "Scores are for given words. Running text is split by rules that fit white space; Chinese is split into characters."
    if result["train_sentences_cut"]:
        yield f"{result['train_sentences_cut']:,} training sentences were cut at {ner['max_len']} subwords."


def _language(name: str) -> str:
    """Of a set; what is not known counts as a language of its own."""
    return SETS[name].language.split("-")[0] if name in SETS else name
