"""Everything that would end a run early or make its result worthless, asked in seconds before anything is spent.

Owns the list of checks that `quad doctor` prints and that `quad run`, `plan` and `run --dry-run` begin with. Each check
says in a line what it found, or raises the error that a run would meet later. Torch is imported by the checks that need
it: those of this machine alone take no time.
"""

from collections.abc import Callable, Iterable
from typing import Any

from quad_tasks.commands.input_sample import Sample, look_at_pool, sample_texts
from quad_tasks.config.schema import ConfigError, RunConfig
from quad_tasks.runtime import check_environment as environment
from quad_tasks.storage.errors import StorageError, StoreKeyError
from quad_tasks.storage.input_documents import expand_inputs, input_size
from quad_tasks.storage.keys import pinned_pool_key
from quad_tasks.storage.store import open_store

Check = Callable[[], str]
FRESH, GGUF_SUFFIX = "fresh", ".gguf"
REFUSALS = (ValueError, StorageError, OSError)
"""What a check raises: every error of a configuration, an input or a model is a `ValueError`; what the system refuses
where no check looked for it is an `OSError`."""
LOOKED_AT_FILES = 24
LOOKED_AT_BYTES = 8 * 2**20
"""Of the pool: fewer bytes are read whole, of more the first records of each file; `quad plan` looks further."""
RESTS_ON = {"pool": ("inputs",), "reference": ("inputs", "model"), "budget": ("pool", "model")}
ONLY_TO_BEGIN = ("model", "inputs", "pool", "reference", "budget")
"""Checks of what a run that has begun keeps a copy of."""
OF_MACHINES = ("device", "workers")
SMALL_BYTES = 8 * 2**20
"""Reference and held-out inputs up to this size are read whole here; larger ones when they are needed."""
BYTES_PER_TOKEN_AT_MOST = 8
"""Of a tokenizer that is not trained yet: no text of a pool has fewer tokens."""
ONE_MEASURED = (
    "one document gives the gain no interval: give more by reference.inputs, reference.heldout_share or a held-out "
    "domain (heldout.reference_domain)"
)


def examine(config: RunConfig | None) -> list[dict[str, Any]]:
    """Run every check, whatever the others find.

    Args:
        config: a run's configuration; None: only what no configuration is needed for.

    Returns:
        A row for each check: its name, whether it is `ok`, and what was `found`; one that rests on another that failed
        is not made.
    """
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for name, check in _checks(config):
        cause = next((other for other in failed if other in RESTS_ON.get(name, ())), None)
        try:
            found, ok = (check(), True) if cause is None else (f"not looked at: see {cause}", False)
        except REFUSALS as error:
            found, ok = str(error), False
        rows.append({"check": name, "ok": ok, "found": found})
        failed += [] if ok else [name]
    return rows


def refuse_unfit(config: RunConfig | None, elsewhere: bool = False) -> None:
    """Run the checks of `examine` in order and stop at the first that fails.

    A run that has begun keeps its model, pool and reference: only what is around it is checked.

    Args:
        config: the run's; None: only what no configuration is needed for.
        elsewhere: it is planned for other machines, whose device and workers are not looked for here.

    Raises:
        ConfigError: the configuration or the environment cannot give a result.
        InputError: an input is missing, cannot be read or holds no document.
        ModelError: the model cannot be used.
        UnsupportedLayer: no block of the model is supported.
        UnsupportedStore: the workspace cannot commit.
    """
    begun = False
    for name, check in _checks(config):
        if (begun and name in ONLY_TO_BEGIN) or (elsewhere and name in OF_MACHINES):
            continue
        try:
            check()
        except REFUSALS as error:
            known = isinstance(error, (ValueError, StoreKeyError))
            raise error if known else ConfigError(f"{name}: {error}") from None
        if config is not None and name == "workspace":
            begun = open_store(config.workspace).exists(pinned_pool_key(config.run))


def _checks(config: RunConfig | None) -> Iterable[tuple[str, Check]]:
    checks: list[tuple[str, Check]] = [
        ("working directory", environment.check_directory),
        ("home", environment.check_home),
        ("temporary files", environment.check_temporary),
        ("Prefect", environment.check_prefect),
    ]
    if config is None:
        return checks
    looked: list[Sample] = []

    def pool() -> str:
        looked.append(look_at_pool(config, LOOKED_AT_FILES, LOOKED_AT_BYTES))
        return _describe(looked[0])

    return [
        *checks,
        ("workspace", lambda: environment.check_workspace(config.workspace)),
        ("device", lambda: environment.check_device(config.compute)),
        ("workers", lambda: environment.check_workers(config.compute, config.workspace)),
        ("model", lambda: check_model_source(config)),
        ("inputs", lambda: environment.check_inputs(_patterns(config))),
        ("pool", pool),
        ("reference", lambda: check_reference(config)),
        ("budget", lambda: check_budget(config, looked[0])),
    ]


def _patterns(config: RunConfig) -> dict[str, list[str]]:
    """Return the patterns of a run's inputs by their keys."""
    sets = config.reference.named_sets()
    return {
        "pool.inputs": list(config.pool.inputs),
        **{config.reference.set_key(name): list(one.inputs) for name, one in sets.items()},
        "heldout.inputs": list(config.heldout.inputs),
    }


def check_model_source(config: RunConfig) -> str:
    """Check the checkpoint whose data is chosen.

    Raises:
        ModelError: it cannot be used.
        UnsupportedLayer: no block of it is supported.
    """
    source = config.model.source
    if source == FRESH:
        return "fresh, trained on a sample of the pool"
    from quad_tasks.runtime.check_checkpoint import check_checkpoint

    check_checkpoint(source, config.model.window_tokens, config.factors.attention)
    return source


def check_reference(config: RunConfig) -> str:
    """Check that the reference and the held-out domains can be read and measured.

    Raises:
        ConfigError: a set is empty, or a domain has no document with a token to predict.
        InputError: a pattern matches nothing, or a file is unreadable.
    """
    from quad_tasks.stages.influence.prepare_reference import split_by_set

    sets = config.reference.named_sets()
    patterns = [pattern for one in sets.values() for pattern in one.inputs]
    uris = [*expand_inputs(patterns), *expand_inputs(config.heldout.inputs)]
    size = sum(map(input_size, uris))
    if size > SMALL_BYTES:
        return f"{len(uris)} files, {size:,} bytes, read when they are needed"
    split = split_by_set(config.reference, config.heldout, config.seed)
    from_sets = config.heldout.reference_domain is None
    measured = {(config.reference.set_key(name), name): own for name, own in split.measured.items() if from_sets}
    for (key, name), own in {
        **measured,
        **{("heldout.inputs", name): own for name, own in split.domains.items()},
    }.items():
        if max(count_tokens(config, [document.text for document in own])) < 2:
            raise ConfigError(f"{key}: expected a measured document of two tokens or more in {name!r}, found none")
    n_direction, n_measured = (sum(map(len, part.values())) for part in (split.direction, split.measured))
    single = f" ({ONE_MEASURED})" if n_measured == 1 else ""
    return (
        f"{n_direction} documents for the direction, {n_measured} measured{single}, {len(split.domains)} other domains"
    )


def check_budget(config: RunConfig, pool: Sample) -> str:
    """Check that the token budget can select something and train with it.

    Raises:
        ConfigError: it is smaller than an optimizer step, or, where every document was looked at, than any of them; or
            these are all alike.
    """
    budget, stages = config.selection.budget_tokens, config.training.stages
    texts = sample_texts(pool, config.pool.fields.text)
    every = pool.exact and len(texts) == pool.documents
    if every and len(set(texts)) == 1:
        raise ConfigError("pool.inputs: expected documents that differ, found a single text: nothing can be chosen")
    each = budget // stages
    of_stages = f" over training.stages = {stages}" if stages > 1 else ""
    smallest = min(count_tokens(config, texts))
    if every and each < smallest:
        raise ConfigError(
            f"selection.budget_tokens: expected at least one document's tokens, found {budget}{of_stages}, and no "
            f"document of fewer than {smallest} tokens"
        )
    if each < config.training.batch_tokens:
        raise ConfigError(
            f"selection.budget_tokens: expected at least one optimizer step of training.batch_tokens = "
            f"{config.training.batch_tokens}, found {budget}{of_stages}: raise it, or lower training.batch_tokens"
        )
    return f"{budget:,} tokens{of_stages}, {each // config.training.batch_tokens} optimizer steps a stage"


def count_tokens(config: RunConfig, texts: list[str]) -> list[int]:
    """Count texts' tokens; of a fresh model, whose tokenizer is not trained yet, at least this many."""
    if config.model.source == FRESH or config.model.source.endswith(GGUF_SUFFIX):
        return [-(-len(text.encode()) // BYTES_PER_TOKEN_AT_MOST) for text in texts]
    from quad_tasks.core.lm.tokenizer import encode, load_tokenizer

    return [len(ids) for ids in encode(load_tokenizer(config.model.source), texts)]


def _describe(pool: Sample) -> str:
    aside = sum(pool.bad.values())
    how, of_those = ("", "") if pool.exact else ("about ", " of those looked at")
    aside_too = f", {aside:,}{of_those} to set aside" if aside else ""
    return f"{how}{pool.documents:,} documents in {pool.files} files{aside_too}"
