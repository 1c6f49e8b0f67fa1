"""A trainer for `training.command`: transformers.Trainer on the documents of a selection.

    training:
      command: >-
        python examples/train_with_transformers.py --selection {selection} --checkpoint {checkpoint} --output {output}
        --tokens {tokens} --seed {seed} --learning-rate 1e-4 --window 512

Documents are joined, an end-of-text token between two of them, and cut into windows; training ends once `--tokens` of
them are seen. Needs `accelerate`, which transformers.Trainer asks for.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Windows of equal length, in a random order; a pass after the first has another order."""

    def __init__(self, tokens: np.ndarray, window: int, wanted: int, seed: int) -> None:
        """Cut the tokens; `wanted` is how many windows there shall be."""
        self.rows = torch.from_numpy(tokens[: len(tokens) // window * window].reshape(-1, window))
        generator = np.random.default_rng(seed)
        passes = math.ceil(wanted / len(self.rows))
        self.order = np.concatenate([generator.permutation(len(self.rows)) for _ in range(passes)])[:wanted]

    def __len__(self) -> int:
        """Count the windows."""
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Give one window, which is its own label."""
        row = self.rows[self.order[index]]
        return {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row}


def main() -> None:
    """Train, and leave the model, the tokenizer and what it took."""
    parser = argparse.ArgumentParser(description="Train a checkpoint on a selection.")
    parser.add_argument("--selection", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--batch-windows", type=int, default=8, help="windows of an optimizer step")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.float32)
    texts = [text for path in sorted(arguments.selection.glob("*.parquet")) for text in read_texts(path)]
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    tokens = np.concatenate([np.array([*ids, *end], np.int64) for ids in tokenizer(texts, verbose=False)["input_ids"]])
    window = min(arguments.window, len(tokens))
    steps = math.ceil(arguments.tokens / ((window - 1) * arguments.batch_windows))
    settings = TrainingArguments(
        output_dir=str(arguments.output / "steps"),
        max_steps=steps,
        per_device_train_batch_size=arguments.batch_windows,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        weight_decay=0.01,
        seed=arguments.seed,
        bf16=torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        logging_steps=max(1, steps // 10),
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    windows = Windows(tokens, window, steps * arguments.batch_windows, arguments.seed)
    trainer = Trainer(model=model, args=settings, train_dataset=windows)
    trainer.train()
    trainer.save_model(str(arguments.output))
    tokenizer.save_pretrained(arguments.output)
    told = {"steps": steps, "target_tokens": len(windows) * (window - 1)}
    (arguments.output / "trained.json").write_text(json.dumps(told))


def read_texts(path: Path) -> list[str]:
    """Read one file's texts."""
    texts: list[str] = pq.read_table(path, columns=["text"])["text"].to_pylist()
    return texts


if __name__ == "__main__":
    main()
