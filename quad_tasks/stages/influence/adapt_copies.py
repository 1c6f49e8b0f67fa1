"""Stage: a copy of the checkpoint adapted to each reference set, in place of a direction.

That is what `bandit.scorer: conditional_loss` scores by: how much less the copy's loss on a document is than the
checkpoint's (`core.lm.conditional_loss`). The copies stand where a direction would, under one manifest, so that rounds,
refits and `verify` treat both alike.
"""

from dataclasses import dataclass

from quad_tasks.config.schema import ConfigError
from quad_tasks.core.lm import training
from quad_tasks.core.lm.conditional_loss import METHOD, adapt
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.core.seeds import Stream, make_generator
from quad_tasks.manifests.influence import DirectionManifest, DirectionSet
from quad_tasks.records import ModelUse
from quad_tasks.runtime.checkpoints import (
    describe_checkpoint,
    load_checkpoint_tokenizer,
    read_checkpoint,
    read_checkpoint_manifest,
    save_checkpoint,
)
from quad_tasks.runtime.processes.memory import SMALLER_TRAINING
from quad_tasks.runtime.reference_tables import read_reference, read_reference_table
from quad_tasks.runtime.run import wait_for_lease
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.storage.keys import adapted_key, factors_folder, manifest_key
from quad_tasks.storage.lease import check_lease
from quad_tasks.storage.manifest import digest, write_manifest
from quad_tasks.storage.store import Store


@dataclass(frozen=True)
class Adaptation:
    """How a copy is adapted.

    Attributes:
        passes: over the reference set.
        peak_rate: peak learning rate.
        step_tokens: targets of an optimizer step at most.
        use: how the model reads documents; it is trained with weights in float32.
        seed: of the run.
    """

    passes: int
    peak_rate: float
    step_tokens: int
    use: ModelUse
    seed: int


@stage_task("adapt copies")
def adapt_copies(store: Store, checkpoint: str, reference: str, how: Adaptation) -> str:
    """Adapt a copy of the checkpoint to each reference set and return the key they stand under.

    Args:
        store: the workspace.
        checkpoint: key of the checkpoint.
        reference: key of the reference tables.
        how: the training.

    Raises:
        ConfigError: no document of a reference set has two tokens.
    """
    weights = read_checkpoint_manifest(store, checkpoint).weights_sha256
    table = read_reference(store, reference).reference
    limits = [how.use.window_tokens, how.use.batch_tokens, how.step_tokens]
    settings = [how.passes, how.peak_rate, limits, how.seed, training.METHOD, METHOD]
    key = factors_folder(digest(["adapted", checkpoint, weights, table.model_dump(mode="json"), settings]))
    if store.exists(manifest_key(key)):
        return key
    with wait_for_lease(store, key):
        if not store.exists(manifest_key(key)):
            _adapt(store, checkpoint, reference, how, key)
    return key


def _adapt(store: Store, checkpoint: str, reference: str, how: Adaptation, key: str) -> None:
    """Adapt a copy to each set and commit them."""
    sets = read_reference(store, reference).reference.sets
    items, first = [], 0
    for number, one in enumerate(sets):
        rows = (first, one.documents)
        items.append((store, checkpoint, reference, how, one.name, rows, adapted_key(key, number)))
        first += one.documents
    n_targets = map_tasks(adapt_copy, items, "adapt to the reference", "copies", on_gpu=True, smaller=SMALLER_TRAINING)
    total = sum(one.weight for one in sets)
    counted = zip(sets, n_targets, strict=True)
    manifest = DirectionManifest(
        factors=None,
        checkpoint=checkpoint,
        reference=reference,
        damping_scale=None,
        sets={one.name: DirectionSet(n_targets=n, share=one.weight / total) for one, n in counted},
        sha256=None,
        adapted={one.name: adapted_key(key, number) for number, one in enumerate(sets)},
    )
    check_lease(store, key)
    write_manifest(store, manifest_key(key), manifest)


def adapt_copy(
    store: Store, checkpoint: str, reference: str, how: Adaptation, name: str, rows: tuple[int, int], key: str
) -> int:
    """Adapt a copy to the set's documents, which stand at `rows` (first, number) of the table; return their targets.

    Raises:
        ConfigError: none of them has two tokens.
    """
    texts = read_reference_table(store, reference, "reference", ["text"]).slice(*rows)["text"].to_pylist()
    documents = [ids for ids in encode(load_checkpoint_tokenizer(store, checkpoint), texts) if len(ids) > 1]
    if not documents:
        raise ConfigError(f"reference set {name!r}: expected documents of at least 2 tokens, found none")
    if not store.exists(manifest_key(key)):
        model, tokenizer = read_checkpoint(store, checkpoint, "float32", how.use.device)
        limits = (how.use.window_tokens, how.step_tokens, how.use.batch_tokens)
        adapt(model, documents, how.passes, how.peak_rate, *limits, make_generator(how.seed, Stream.ADAPTATION))
        tokenizer_name = read_checkpoint_manifest(store, checkpoint).tokenizer.name
        described = describe_checkpoint(f"adapted to {name}", tokenizer_name, model, tokenizer)
        save_checkpoint(store, key, model, tokenizer, described)
    return training.count_targets(documents)
