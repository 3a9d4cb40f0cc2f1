"""The model card: its header for the hub, its text, and the code in it, which must reproduce the tagger's tags."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from huggingface_hub import ModelCard
from ner_world import NOTHING, labelled, make_encoder_tokenizer, make_tokenizer, write_checkpoint
from transformers import pipeline

import metapt
from metapt.config import NerConfig
from metapt.data import DEMO_NOTICE, demo
from metapt.data.iob2 import TAGS, TYPES, Sentence
from metapt.data.labelled_sets import ALL_SETS
from metapt.data.licences import SETS, set_facts, shared_licence
from metapt.evaluation.span_f1 import set_scores
from metapt.finetuning.model_card import model_card
from metapt.models.base_model import load_base_model
from metapt.tagger.encoding import EncodingSettings
from metapt.tagger.model import Tagger, TagLayer
from metapt.tagger.serialization import loads_in_transformers, save_tagger

WORDS = '["Pumunta", "si", "Maria", "sa", "Cebu", "."]'  # in the code of the card


def result_of(sources: list[str], tests: list[str], **more: Any) -> dict[str, Any]:
    """The result.json of a run that predicts every second sentence correctly and finds nothing in the others."""
    sentences = labelled(40, 3)
    guesses = [each.tags if number % 2 else ("O",) * len(each.tags) for number, each in enumerate(sentences)]
    origin = {
        "model": "tiny",
        "objective": "maml",
        "seed": 7,
        "step": 6000,
        "parameters": 11_282_784,
        "data": "text",
    }
    return {
        "origin": origin,
        "earlier_tunings": [],
        "steps": 7840,
        "source": "+".join(sources),
        "tuning": "full",
        "seed": 3,
        "epochs": 10,
        "best_epoch": 8,
        "dev_f1": 0.51,
        "types": ["PER", "ORG", "LOC"],
        "train_sentences": 12543,
        "train_sentences_split": 21,
        "generated_data": False,
        "source_sets": sources,
        "custom_sets": {},
        "shared_sentences": {name: {"sentences": 3, "gold_spans": 2} for name in tests},
        "sets": {name: set_scores("test", sentences, guesses) for name in tests},
        **more,
    }


def card_of(result: dict[str, Any], **ner: Any) -> tuple[ModelCard, str]:
    text = model_card(result, asdict(NerConfig(**ner)), is_causal=True, in_transformers=True)
    return ModelCard(text), text


def test_every_known_set_has_a_licence() -> None:
    assert SETS.keys() == {*ALL_SETS, *demo.SET_SPLITS}
    assert [name for name, facts in SETS.items() if facts.is_non_commercial] == ["tl_ugnayan"]
    assert shared_licence(["en_ewt", "sk_snk"], {}) == "cc-by-sa-4.0"
    assert shared_licence(["en_ewt", "en_pud"], {}) == shared_licence(["my_news"], {}) == "other"
    described = {name: {"language": "", "licence": "CC BY-SA 4.0"} for name in ("my_news", "en_pud")}
    assert shared_licence(["en_ewt", "my_news"], described) == "cc-by-sa-4.0"
    assert set_facts("en_pud", described).licence == "CC BY-SA 4.0", (
        "a description is of the set that was read"
    )


@pytest.mark.parametrize(
    ("licence", "hub_licence", "is_non_commercial"),
    [
        ("CC BY-NC-SA 4.0 according to SEACrowd; the repository says fair use", "other", True),
        ("CC BY-NC 4.0", "cc-by-nc-4.0", True),
        ("for non-commercial research only", "other", True),
        ("Noncommercial", "other", True),
        ("MIT", "mit", False),
        ("GPL-3.0", "gpl-3.0", False),
        ("Princeton licence", "other", False),
    ],
)
def test_licences_as_descriptions_spell_them(licence: str, hub_licence: str, is_non_commercial: bool) -> None:
    facts = set_facts("x", {"x": {"language": "Tagalog", "licence": licence}})
    assert (facts.hub_licence, facts.is_non_commercial) == (hub_licence, is_non_commercial)


def test_a_tagger_of_non_commercial_data_says_so() -> None:
    described = {
        "ceb_news": {"language": "Cebuano", "licence": "CC BY-NC 4.0"},
        "ceb_more": {"language": "", "licence": ""},
    }
    card, text = card_of(result_of(["ceb_news", "en_ewt"], ["ceb_more", "ceb_gja"], custom_sets=described))
    assert card.data.license == "other"
    assert "Fine-tuning data licensed for non-commercial use only: ceb_news." in text
    assert "Evaluation data of unknown licence: ceb_more." in text
    assert "not fine-tuned on" not in text, "Cebuano is a fine-tuning language, however it is spelled"
    only, _ = card_of(result_of(["ceb_news"], ["ceb_gja"], custom_sets=described))
    assert only.data.license == "cc-by-nc-4.0"


def test_a_continued_tagger_names_the_licences_of_earlier_tunings() -> None:
    described = {"ceb_news": {"language": "Cebuano", "licence": "CC BY-NC 4.0"}}
    earlier = {
        "source_sets": ["ceb_news"],
        "custom_sets": described,
        "train_sentences": 9,
        "tuning": "full",
    }
    result = result_of(["en_ewt"], ["ceb_gja"], earlier_tunings=[earlier], shared_sentences=None)
    card, text = card_of(result)
    assert card.data.license == "other"
    assert "Fine-tuning data licensed for non-commercial use only: ceb_news." in text
    assert "| ceb_gja | evaluation | ceb | cc-by-sa-4.0 | not counted |" in text


def test_header_for_the_hub() -> None:
    card, _ = card_of(result_of(["en_ewt", "sk_snk"], ["ceb_gja", "en_ewt"]))
    data = card.data
    assert (data.license, data.language, data.pipeline_tag) == (
        "cc-by-sa-4.0",
        ["en", "sk"],
        "token-classification",
    )
    assert data.datasets == ["universalner/universal_ner"]
    assert data.model_name == "metapt-tiny-maml-en_ewt+sk_snk-full"
    first = data.eval_results[0]
    scores = result_of([], ["ceb_gja"])["sets"]["ceb_gja"]
    assert (first.dataset_config, first.dataset_split, first.metric_type) == ("ceb_gja", "test", "f1")
    assert first.metric_value == pytest.approx(scores["f1"], abs=1e-4)
    assert f"{scores['gold_spans']} gold spans" in first.metric_name


def test_scores_licences_and_limitations() -> None:
    result = result_of(["en_ewt"], ["ceb_gja", "en_ewt", "tl_ugnayan"])
    result["sets"]["tl_ugnayan"] |= {"gold_spans": 0, "f1_interval": [None, None]}
    card, text = card_of(result)
    scores = result["sets"]["ceb_gja"]
    low, high = scores["f1_interval"]
    row = f"| ceb_gja | {scores['f1']:.3f} | [{low:.3f}, {high:.3f}] | 40 sentences | {scores['precision']:.3f} |"
    assert row in text
    assert low < scores["f1"] < high
    assert "| tl_ugnayan | - | - | - | - | - | 0 |" in text
    assert "tl_ugnayan" not in {each.dataset_name for each in card.data.eval_results}
    assert "| tl_ugnayan | evaluation | tl | cc-by-nc-sa-4.0 | 3 of 40 (2 spans) |" in text
    assert "| en_ewt | fine-tuning, evaluation | en | cc-by-sa-4.0 | 3 of 40 (2 spans) |" in text
    assert "non-commercial use only: tl_ugnayan." in text
    assert "not fine-tuned on: ceb_gja, tl_ugnayan." in text
    assert "21 training sentences were longer than 128 subwords, and were trained in several windows." in text
    assert "11,282,784 parameters" in text
    assert DEMO_NOTICE not in text


def test_synthetic_data_and_unknown_origin() -> None:
    card, text = card_of(result_of(["en_demo"], ["tl_demo"], generated_data=True))
    assert DEMO_NOTICE in text
    assert "synthetic-data" in card.data.tags
    assert card.data.datasets is None
    card, text = card_of(result_of(["my_news"], ["my_news"], origin={"model": "folder"}))
    assert "| my_news | fine-tuning, evaluation | not recorded | not recorded |" in text
    described = {"my_news": {"language": "Tagalog", "licence": "GPL-3.0"}}
    _, described_text = card_of(result_of(["my_news"], ["my_news"], custom_sets=described))
    assert "| my_news | fine-tuning, evaluation | Tagalog | GPL-3.0 |" in described_text
    assert "`folder`, about which nothing else is recorded" in text
    assert "pretraining text is not recorded" in text
    assert (card.data.license, card.data.language) == ("other", None)


@pytest.mark.parametrize("subword_pooling", ["first", "last", "mean"])
@pytest.mark.parametrize(("head", "prefix_space"), [("crf", True), ("softmax", False)])
def test_code_in_the_card_reproduces_the_tags(
    tmp_path: Path, subword_pooling: str, head: str, prefix_space: bool
) -> None:
    """The code block runs unchanged except for the folder and the words."""
    torch.manual_seed(2)
    layer = TagLayer(32, TAGS, head, dropout=0.1)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    (tmp_path / "tagger").mkdir()
    model = Tagger(load_base_model(write_checkpoint(tmp_path / "model")), layer, subword_pooling)
    save_tagger(tmp_path / "tagger", model, make_tokenizer(), EncodingSettings(prefix_space, max_len=128))
    _, text = card_of(
        result_of(["en_ewt"], []), head=head, subword_pooling=subword_pooling, prefix_space=prefix_space
    )
    with_metapt, alone = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert WORDS in alone
    assert "metapt" not in alone
    tagger, found_tags = metapt.load_tagger(tmp_path / "tagger"), set()
    odd = Sentence("odd", ("北京", "Ñandú", NOTHING, "👩🏽", "Maria"), ("O",) * 5)
    for sentence in [*labelled(6, 8), odd]:
        code = alone.replace("path/to/this/folder", str(tmp_path / "tagger"))
        names: dict[str, Any] = {}
        exec(code.replace(WORDS, repr(list(sentence.words))), names)
        assert tuple(names["tags"]) == tagger.tag([list(sentence.words)])[0].tags
        found_tags |= set(names["tags"])
    assert len(found_tags) > 3
    exec(with_metapt.replace("path/to/this/folder", str(tmp_path / "tagger")), {})
    (strategy,) = re.findall(r'aggregation_strategy="(\w+)"', text)
    assert strategy == {"first": "first", "last": "average", "mean": "average"}[subword_pooling]
    classify = pipeline("token-classification", model=str(tmp_path / "tagger"), aggregation_strategy=strategy)
    entities = classify("Maria lives in Cebu")
    assert {each["entity_group"] for each in entities} <= set(TYPES)
    assert len(entities) > 0


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 320}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 256}


@pytest.mark.parametrize(
    ("config", "loads"),
    [
        (tf.BertConfig(**SIZES), True),
        (tf.LlamaConfig(**SIZES), True),
        (tf.XLMRobertaConfig(**SIZES), True),
        (tf.DebertaV2Config(**SIZES), True),
        (tf.ModernBertConfig(**SIZES, pad_token_id=0), False),  # a dense layer before the classifier
        (tf.Olmo2Config(**SIZES), False),  # no token-classification class
        (
            tf.OPTConfig(
                hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=320
            ),
            False,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_card_offers_transformers_only_where_it_gives_the_same_tags(
    tmp_path: Path, config: tf.PretrainedConfig, loads: bool
) -> None:
    torch.manual_seed(3)
    model = Tagger(tf.AutoModel.from_config(config), TagLayer(32, TAGS, "crf", dropout=0.1), "first").eval()
    is_encoder = not model.is_causal
    tokenizer = make_encoder_tokenizer() if is_encoder else make_tokenizer()
    frame = ((0,), (2,)) if is_encoder else ((), ())
    save_tagger(tmp_path, model, tokenizer, EncodingSettings(True, 64, *frame))
    assert loads_in_transformers(tmp_path, model) == loads
    text = model_card(
        result_of(["en_ewt"], []), asdict(NerConfig()), is_causal=model.is_causal, in_transformers=loads
    )
    assert ("AutoModelForTokenClassification" in text) == ("pipeline(" in text) == loads
    assert ModelCard(text).data.library_name == ("transformers" if loads else "metapt")
    sentence = ["Maria", "lives", "in", "北京"]
    tags = metapt.load_tagger(tmp_path).tag([sentence])[0].tags
    assert tags == metapt.load_tagger(tmp_path).tag([sentence])[0].tags
    if loads:
        code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]
        names: dict[str, Any] = {}
        exec(code.replace("path/to/this/folder", str(tmp_path)).replace(WORDS, repr(sentence)), names)
        assert tuple(names["tags"]) == tags
