"""A sample is fair and holds every text once; passages hold every word once; sizes survive JSON."""

import dataclasses
import json

import pytest
from experiments.conftest import TINY, write_lines

from quad_tasks.config.schema import ConfigError, ReferenceConfig, RunConfig
from quad_tasks.experiments.lab import corpus_sample
from quad_tasks.experiments.lab.corpus_sample import QUICK, SCORES, cut_passages, read_inputs, read_size, scored_kinds


def test_the_sample_holds_every_text_once_however_the_pool_is_cut_up(tiny_config):
    texts = read_inputs(tiny_config, dataclasses.replace(TINY, documents=1000))
    assert len(texts.pool) == len(set(texts.pool)) == 75
    turned = tiny_config.model_copy(
        update={"pool": tiny_config.pool.model_copy(update={"inputs": tiny_config.pool.inputs[2::-1]})}
    )
    assert set(read_inputs(turned, TINY).pool) <= set(texts.pool)
    assert set(texts.others) == {"sums", "law"}
    assert not set(texts.reference) & set(texts.measured)


@pytest.mark.parametrize("characters", [None, 40])
def test_pool_documents_that_hold_held_out_text_are_left_out_and_counted(tmp_path, monkeypatch, characters):
    def words(first, n=60):
        return " ".join(f"word{number}" for number in range(first, first + n))

    def write(name, texts):
        return write_lines(tmp_path / f"{name}.jsonl", texts, name)

    measured, law = words(1_000), words(2_000)
    leaks = [measured, measured.upper(), f"before {words(3_000)} {measured} {words(4_000)}", words(1_010, 40), law]
    clean = [words(10_000 + 100 * number) for number in range(20)]
    settings = {
        "pool": {"inputs": [write("pool", [*leaks, *clean])]},
        "reference": {"inputs": [write("reference", [words(5_000), words(6_000)])]},
        "heldout": {"inputs": [write("sea", [measured]), write("law", [law])], "reference_domain": "sea"},
        "selection": {"budget_tokens": 1},
    }
    said = []
    monkeypatch.setattr(corpus_sample, "notice", said.append)
    size = dataclasses.replace(TINY, documents=1_000, passage_characters=characters)
    texts = read_inputs(RunConfig.model_validate(settings), size)
    assert texts.measured == [measured]
    assert sorted(texts.pool) == sorted(passage for text in clean for passage in cut_passages(text, characters))
    assert texts.overlapping == len(leaks)
    assert said == [f"pool.inputs: {len(leaks)} documents hold held-out text and are left out"]
    settings["heldout"]["overlap_words"] = None
    unsearched = read_inputs(RunConfig.model_validate(settings), size)
    assert len(unsearched.pool) > len(texts.pool)
    assert unsearched.overlapping == 0
    settings["pool"]["inputs"] = [write("leaks", leaks)]
    settings["heldout"]["overlap_words"] = 5
    with pytest.raises(ConfigError, match=r"pool\.inputs: expected documents without held-out text"):
        read_inputs(RunConfig.model_validate(settings), size)


def test_several_reference_sets_are_refused_by_name(tiny_config):
    inputs = tiny_config.reference.inputs
    sets = {"one": {"inputs": inputs, "weight": 3}, "other": {"inputs": inputs}}
    several = tiny_config.model_copy(update={"reference": ReferenceConfig.model_validate({"sets": sets})})
    with pytest.raises(ConfigError, match=r"reference\.sets: expected one"):
        read_inputs(several, TINY)


def test_passages_hold_every_word_once():
    text = " ".join(f"word{n}" for n in range(100))
    passages = cut_passages(text, 60)
    assert " ".join(passages).split() == text.split()
    assert all(30 <= len(passage) <= 90 for passage in passages)
    assert cut_passages(text, None) == [text]


def test_a_size_reads_back_from_json():
    for size in (TINY, dataclasses.replace(QUICK, kinds=("joint", "identity"))):
        assert read_size(json.loads(json.dumps(dataclasses.asdict(size)))) == size
    assert scored_kinds(TINY) == SCORES
    assert scored_kinds(dataclasses.replace(TINY, kinds=("joint",))) == ("joint",)
