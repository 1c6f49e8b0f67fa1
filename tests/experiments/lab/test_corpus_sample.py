"""A sample is fair and holds every text once; passages hold every word once; sizes survive JSON."""

import dataclasses
import json

from experiments.conftest import TINY

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
