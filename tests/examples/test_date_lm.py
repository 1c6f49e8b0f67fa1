"""DATE-LM's pretraining track on a stand-in of its format: its chunks, passages and checkpoint, a run, its draw."""

import importlib.util
import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from small_pool import TOPICS
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from quad_tasks.config.load import load_config
from quad_tasks.core.lm.model import load_model
from quad_tasks.core.lm.tokenizer import END_OF_TEXT, load_tokenizer, train_tokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TOKENS, SEQUENCES = 33, 300
LITGPT = {
    "gpt_neox.embed_in.weight": "transformer.wte.weight",
    "gpt_neox.layers.{}.input_layernorm": "transformer.h.{}.norm_1",
    "gpt_neox.layers.{}.attention.query_key_value": "transformer.h.{}.attn.attn",
    "gpt_neox.layers.{}.attention.dense": "transformer.h.{}.attn.proj",
    "gpt_neox.layers.{}.post_attention_layernorm": "transformer.h.{}.norm_2",
    "gpt_neox.layers.{}.mlp.dense_h_to_4h": "transformer.h.{}.mlp.fc",
    "gpt_neox.layers.{}.mlp.dense_4h_to_h": "transformer.h.{}.mlp.proj",
    "gpt_neox.final_layer_norm": "transformer.ln_f",
}
"""What LitGPT 0.4 calls a GPT-NeoX's tensors."""


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batched(items, n):
    return [items[i : i + n] for i in range(0, len(items), n)]


def passage(generator, topic):
    return " ".join(generator.choice(TOPICS[topic].split(), int(generator.integers(20, 90))))


def write_chunks(folder, documents, per_chunk=60):
    """Write documents as LitData 0.2.17 does; return the tokens of each chunk in a row."""
    folder.mkdir(parents=True)
    rows, chunks = [], []
    for number, group in enumerate(batched(documents, per_chunk)):
        data = [np.array(ids, dtype="<i4").tobytes() for ids in group]
        ends = list(itertools.accumulate((len(one) for one in data), initial=4 * (len(group) + 2)))
        head = struct.pack(f"<{len(ends) + 1}I", len(group), *ends)
        name = f"chunk-0-{number}.bin"
        (folder / name).write_bytes(head + b"".join(data))
        rows.append(list(itertools.chain(*group)))
        size = {"chunk_bytes": ends[-1], "chunk_size": len(group), "filename": name, "dim": len(rows[-1])}
        chunks.append(size)
    config = {"compression": None, "chunk_bytes": 2000, "data_format": ["no_header_tensor:16"], "item_loader": None}
    (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": config}))
    return rows


def save_litgpt(model, path):
    """Save weights under LitGPT's names, beside what its training keeps."""
    weights = {}
    for name, tensor in model.state_dict().items():
        layer = next((part for part in name.split(".") if part.isdecimal()), "")
        plain = name.replace(f".{layer}.", ".{}.") if layer else name
        known = next((own for own in LITGPT if plain.startswith(own)), None)
        renamed = plain.replace(known, LITGPT[known]) if known else "lm_head.weight"
        weights[renamed.format(layer)] = tensor
    assert len(weights) == len(model.state_dict())
    torch.save({"model": weights, "optimizer": {"state": {}}, "iter_num": 3, "step_count": 1}, path)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A local copy: the base directory, its checkpoint, the tokenizer's folder; and what they were made of."""
    folder, generator = tmp_path_factory.mktemp("copy"), np.random.default_rng(0)
    texts = [passage(generator, topic) for topic in list(TOPICS) * 130]
    tokenizer = train_tokenizer(texts, 320)
    tokenizer.save_pretrained(folder / "tokenizer")
    encoded = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    rows = write_chunks(folder / "data/fineweb/train/0", encoded)
    passages = [
        {"input_ids": ids, "labels": [-1] * (len(ids) - 1) + ids[-1:]}
        for ids in tokenizer([passage(generator, "harbour") for _ in range(40)])["input_ids"]
    ]
    for name, own in (("train/train-1024.pt", passages[:24]), ("val/val.pt", passages)):
        path = folder / "data/lambada_openai" / name
        path.parent.mkdir(parents=True)
        torch.save(own, path)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=TOKENS - 1, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPTNeoXForCausalLM(config).eval()
    config.save_pretrained(folder / "tokenizer")
    save_litgpt(model, folder / "lit_model.pth")
    return folder, tokenizer, rows, model


@pytest.fixture(scope="module")
def laid_out(copy, tmp_path_factory):
    """Where the example's script laid the inputs out, several files of the pool."""
    folder, script = tmp_path_factory.mktemp("date-lm"), example("lay_out_date_lm")
    arguments = [folder, copy[0], copy[0] / "lit_model.pth", copy[0] / "tokenizer"]
    sizes = ["--sequences", str(SEQUENCES), "--sequence-tokens", str(TOKENS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "FILE_SEQUENCES", 128)
        patch.setattr("sys.argv", ["lay_out_date_lm.py", *map(str, arguments), *sizes])
        script.main()
    return folder


def test_the_pool_is_the_first_sequences_of_every_chunk_in_order(copy, laid_out):
    _, tokenizer, rows, _ = copy
    cut = [list(ids) for row in rows for ids in batched(row, TOKENS) if len(ids) == TOKENS]
    assert len(cut) > SEQUENCES
    files = sorted((laid_out / "pool").iterdir())
    table = ds.dataset(files).to_table()
    assert len(files) == 3
    assert table["id"].to_pylist() == [f"{i:07d}" for i in range(SEQUENCES)]
    assert table["text"].to_pylist() == tokenizer.batch_decode(cut[:SEQUENCES], clean_up_tokenization_spaces=False)
    assert any(END_OF_TEXT in text for text in table["text"].to_pylist())


def test_the_direction_has_the_reference_and_the_loss_the_passages_beside_it(copy, laid_out):
    passages = torch.load(copy[0] / "data/lambada_openai/val/val.pt", weights_only=True)
    texts = copy[1].batch_decode([one["input_ids"] for one in passages])
    found = {
        name: [json.loads(line)["text"] for line in (laid_out / name / "lambada.jsonl").read_text().splitlines()]
        for name in ("reference", "heldout")
    }
    assert found == {"reference": texts[:24], "heldout": texts[24:]}


def test_the_checkpoint_is_the_same_model_in_another_form(copy, laid_out):
    ids = torch.arange(2 * TOKENS).reshape(2, TOKENS)
    with torch.no_grad():
        assert torch.equal(load_model(laid_out / "model")(ids).logits, copy[3](ids).logits)
    assert load_tokenizer(laid_out / "model").get_vocab() == copy[1].get_vocab()


def test_chunks_of_another_kind_are_refused(copy, tmp_path):
    index = json.loads((copy[0] / "data/fineweb/train/0/index.json").read_text())
    index["config"]["data_format"] = ["no_header_tensor:0"]  # float32
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(SystemExit, match="expected uncompressed chunks of token ids"):
        next(example("lay_out_date_lm").read_sequences(tmp_path, TOKENS))


def small(folder):
    """Read the shipped configuration, made to take seconds."""
    paths = {
        "workspace": f"{folder}/workspace", "pool.inputs": f"[{folder}/pool/*.parquet]",
        "reference.inputs": f"[{folder}/reference/*.jsonl]", "heldout.inputs": f"[{folder}/heldout/*.jsonl]",
        "model.source": f"{folder}/model",
    }  # fmt: skip
    sizes = {
        "model.window_tokens": TOKENS, "model.batch_tokens": 8 * TOKENS, "model.dtype": "float32",
        "embedding.dimension": 8, "clustering.arms": 6, "factors.sample_documents": 40, "bandit.pilot_documents": 24,
        "bandit.max_cost_share": 0.3, "bandit.arms_per_round": 2, "bandit.documents_per_pull": 4,
        "bandit.scorer": "exact", "selection.budget_tokens": SEQUENCES // 10 * TOKENS, "compute.device": "cpu",
    }  # fmt: skip
    return load_config(EXAMPLES / "date_lm.yaml", [f"{key}={value}" for key, value in (paths | sizes).items()])


@pytest.mark.slow
def test_a_run_leads_to_exactly_a_tenth_of_the_sequences(laid_out, dask_client, monkeypatch, capsys):
    from flows.select_data import select_data
    from quad_tasks.commands.export.export_influence import export_influence

    config = small(laid_out)
    select_data(config, until="bandit")
    export_influence(config, str(laid_out / "influence"))
    script, drawn = example("draw_date_lm"), []
    arguments = [laid_out / "influence/influence.parquet", laid_out / "pool", laid_out]
    for seed in (42, 42, 1):
        monkeypatch.setattr("sys.argv", ["draw_date_lm.py", *map(str, arguments), "--seed", str(seed)])
        script.main()
        drawn.append(np.load(laid_out / "selected.npy"))
    assert f"{SEQUENCES // 10} of {SEQUENCES} sequences drawn; 0 had no influence" in capsys.readouterr().out
    for numbers in drawn:
        assert len(np.unique(numbers)) == len(numbers) == SEQUENCES // 10
        assert 0 <= numbers.min() <= numbers.max() < SEQUENCES
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    scores, table = np.load(laid_out / "metrics.npy"), pq.read_table(arguments[0])
    assert {int(i): v for i, v in zip(table["id"].to_pylist(), table["influence"].to_pylist(), strict=True)} == dict(
        enumerate(scores.tolist())
    )
    assert scores[drawn[0]].mean() > scores.mean()


def test_a_sequence_without_influence_counts_as_the_lowest(tmp_path):
    pq.write_table(ds.pa.table({"id": ["0000002", "0000000"], "influence": [-1.0, 3.0]}), tmp_path / "i.parquet")
    scores, without = example("draw_date_lm").order_scores(tmp_path / "i.parquet", 4)
    assert scores.tolist() == [3.0, -1.0, -1.0, -1.0]
    assert without == 2


def test_gumbel_top_k_draws_pairs_as_a_softmax_without_replacement():
    scores, temperature, draws = np.array([0.3, -0.2, 1.1]), 0.5, 40_000
    weight = np.exp((scores - scores.mean()) / scores.std() / temperature)
    first = weight / weight.sum()
    expected = {
        pair: sum(first[a] * weight[b] / (weight.sum() - weight[a]) for a, b in (pair, pair[::-1]))
        for pair in itertools.combinations(range(3), 2)
    }
    assert sum(expected.values()) == pytest.approx(1)
    draw, generator = example("draw_date_lm").gumbel_top_k, np.random.default_rng(0)
    found = [tuple(draw(scores, 2, temperature, generator).tolist()) for _ in range(draws)]
    for pair, probability in expected.items():
        error = (probability * (1 - probability) / draws) ** 0.5
        assert found.count(pair) / draws == pytest.approx(probability, abs=4 * error)


def test_the_draw_is_the_protocols_own():
    scores = np.random.default_rng(3).normal(2.0, 5.0, 1000)
    keys = (scores - np.mean(scores)) / np.std(scores) / 0.5 + np.random.default_rng(42).gumbel(size=1000)
    found = example("draw_date_lm").gumbel_top_k(scores, 100, 0.5, np.random.default_rng(42))
    assert found.tolist() == sorted(np.argsort(keys)[-100:].tolist())
