"""Kill `quad run` in the middle of a training, resume it, and compare the trained weights with a calm run's.

Each attempt is the real command in a process group of its own, ended by SIGKILL. A moment is a number of kept states of
the training (`training.checkpoint_every_s`) since the attempt began, and a random delay after the last of them. What a
kill costs is the time since the state that the next attempt goes on from was kept.

Prints, and writes with `--out`, `identical`: weights, optimizer and measured losses have the calm run's digests; and
for each kill the steps that were kept and the seconds from the last kept state until every process was gone.
"""

import argparse
import hashlib
import json
import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from bench_selection import describe_environment
from crash_resume import kill_group, start

sys.path.append(str(Path(__file__).resolve().parents[1]))

from small_pool import small_config, stored, write_corpus

from quad_tasks.core.lm.training import TrainingRecord
from quad_tasks.runtime.checkpoints import RECORD
from quad_tasks.storage.errors import StorageError
from quad_tasks.storage.keys import losses_key, manifest_key, optimizer_key, steps_key, trained_key
from quad_tasks.storage.store import open_store
from quad_tasks.storage.tensors import load_tensors

EVERY_S, POLL_S = 2, 0.02
TRAINED = trained_key("small", 0, "selected-0")
SETTINGS = {
    "model__fresh__width": 128, "model__fresh__layers": 3, "model__fresh__heads": 4, "model__fresh__key_value_heads": 4,
    "model__fresh__mlp_width": 344, "training__stages": 1, "training__seeds": 1, "training__control": False,
    "training__frontier": [], "training__batch_tokens": 2, "training__checkpoint_every_s": EVERY_S,
}  # fmt: skip


def main() -> None:
    arguments = _arguments()
    generator, began = random.Random(arguments.seed), time.monotonic()
    with TemporaryDirectory(prefix="quad-crash-") as temporary:
        folder = Path(temporary)
        write_corpus(folder / "corpus")
        calm, disturbed = Run(folder, "calm"), Run(folder, "disturbed")
        calm.finish()
        kills = [disturbed.kill(generator) for _ in range(arguments.kills)]
        disturbed.finish()
        expected, found = calm.digests(), disturbed.digests()
        steps = int(stored(calm.store, losses_key(TRAINED))["training"]["steps"])
    command = shlex.join(["python", "tests/benchmarks/crash_training.py", *sys.argv[1:]])
    body = {
        "environment": describe_environment(command),
        "seconds": round(time.monotonic() - began),
        "checkpoint_every_s": EVERY_S,
        "steps": steps,
        "kills": kills,
        "most_lost_s": max(kill["lost_s"] for kill in kills),
        "identical": found == expected,
        "digests": found,
    }
    print(json.dumps(body, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(body, indent=1) + "\n")
    sys.exit(not body["identical"])


class Run:
    """One workspace and the command that works in it."""

    def __init__(self, folder: Path, name: str) -> None:
        """Write its configuration."""
        self.folder, self.logs = folder / name, folder / name / "log"
        self.folder.mkdir()
        self.config = self.folder / "config.yaml"
        body = small_config(folder / "corpus", str(self.folder / "workspace"), **SETTINGS)
        self.config.write_text(yaml.safe_dump(body))
        self.environment = {**os.environ, "QUAD_WITHOUT_PREFECT": "1"}
        self.store = open_store(str(self.folder / "workspace"))
        self.kept = self.folder / "workspace" / steps_key(TRAINED)

    def finish(self) -> None:
        """Run to the end."""
        process = self._start()
        if process.wait() != 0:
            raise SystemExit(f"quad run ended with {process.returncode}:\n{self.logs.read_text()[-4000:]}")

    def kill(self, generator: random.Random) -> dict[str, Any]:
        """Run until a state of the training is kept anew, and a while longer; kill it there."""
        before = self._kept_at()
        process = self._start()
        while self._kept_at() == before:
            if process.poll() is not None:
                raise SystemExit(f"expected a training to kill, found it ended:\n{self.logs.read_text()[-4000:]}")
            time.sleep(POLL_S)
        time.sleep(generator.uniform(0, EVERY_S))
        kill_group(process)
        killed = time.time()
        if self.store.exists(losses_key(TRAINED)):
            raise SystemExit("expected to kill a training, found it measured already: give it more steps")
        return {"kept_steps": self._kept_steps(), "lost_s": round(killed - self._kept_at(), 2)}

    def digests(self) -> dict[str, str]:
        """Return the digests of what the training made: its weights, the optimizer's state, the losses."""
        manifest = stored(self.store, manifest_key(TRAINED))
        weights = hashlib.sha256(self.store.get(f"{TRAINED}/model.safetensors")).hexdigest()
        optimizer = hashlib.sha256(self.store.get(optimizer_key(TRAINED))).hexdigest()
        losses = str(stored(self.store, losses_key(TRAINED))["digest"])
        return {"weights": weights, "optimizer": optimizer, "losses": losses, "checkpoint": str(manifest["digest"])}

    def _start(self) -> subprocess.Popen[bytes]:
        return start(self.config, 1, self.environment, self.logs)

    def _kept_at(self) -> float:
        return self.kept.stat().st_mtime if self.kept.exists() else 0.0

    def _kept_steps(self) -> int:
        try:
            _, metadata = load_tensors(self.store, steps_key(TRAINED))
        except StorageError as error:
            raise SystemExit(f"expected a state that is whole, found {error}") from None
        return TrainingRecord(**json.loads(metadata[RECORD])).steps


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
