"""Stage: draw the random control, the selection's counterfactual: what it could have taken, drawn by chance."""

from quad_tasks.core.seeds import Stream, draw_seed, make_generator
from quad_tasks.manifests.run import Choice
from quad_tasks.records import Stage
from quad_tasks.runtime.run import check_run_lease, delete_as_driver
from quad_tasks.runtime.tasks import stage_task
from quad_tasks.stages.bandit.draw_pulls import closed_positions
from quad_tasks.stages.bandit.ledger import read_choice, read_chosen, selected_key
from quad_tasks.stages.selection.drop_near_duplicates import NearDuplicateSearch
from quad_tasks.stages.selection.fill_pool_budget import fill_rankings, fill_without_duplicates
from quad_tasks.stages.selection.rank_pool import rank_at_random
from quad_tasks.stages.selection.select_documents import (
    NO_SCORES,
    StageSelection,
    describe_chosen,
    write_chosen,
)
from quad_tasks.storage.keys import choice_key, choice_manifest_key, rankings_folder
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.store import Store


@stage_task("random control")
def draw_random_control(store: Store, stage: Stage, how: StageSelection, training_seed: int) -> str:
    """Draw the random control of the stage: as many tokens as were selected, uniform over what could have been.

    Left out are what earlier stages chose, what holds held-out text, and near-duplicates of those choices and of other
    documents of the control, as they are left out of the selection. So the two differ in how they were drawn alone.

    Args:
        store: the workspace.
        stage: the stage.
        how: by which the stage's documents were selected.
        training_seed: of the training that has this control.
    """
    name = f"random-{training_seed}"
    key, folder = choice_key(stage.run, stage.number, name), rankings_folder(stage.run, stage.number, name)
    if store.exists(choice_manifest_key(key)):
        delete_as_driver(store, stage.run, folder)  # rankings of one that was killed right after
        return key
    taken = read_chosen(store, stage.run, stage.number)["position"].to_numpy()
    search = NearDuplicateSearch(store, stage.version, how.settings, taken)
    budget = read_choice(store, selected_key(stage)).tokens
    seed = draw_seed(make_generator(how.seed, Stream.RANDOM_CONTROL, stage.number, training_seed))
    n_documents, closed = read_version(store, stage.version).documents, closed_positions(store, stage)
    ranked = rank_at_random(store, stage.version, folder, n_documents, seed, closed)
    drawn = fill_without_duplicates(lambda excluded: fill_rankings(store, [ranked], budget, excluded), search.find)
    delete_as_driver(store, stage.run, folder)
    table = write_chosen(store, key, describe_chosen(store, stage.version, drawn.position_B, NO_SCORES))
    choice = Choice(
        **table, budget_tokens=budget, seed=training_seed, near_duplicates=tuple(sorted(set(search.dropped)))
    )
    check_run_lease(store, stage.run)
    write_manifest(store, choice_manifest_key(key), choice)
    return key
