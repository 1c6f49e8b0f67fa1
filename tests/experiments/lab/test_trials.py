"""A trial is training on its rows from the checkpoint, computed once; held-out bytes are those of the tokens."""

import numpy as np
import pytest

from quad_tasks.experiments.lab.train_choice import begin, common_targets, measure_losses, train
from quad_tasks.experiments.lab.trials import continued_settings, hold_out, hold_out_reference, profile, train_trials
from quad_tasks.stages.selection.paired_gain import UnequalTrainings


def test_a_trial_trains_on_as_many_targets_of_its_rows_in_order(tiny_testbed):
    rows, size = np.random.default_rng(0).permutation(len(tiny_testbed.documents)), tiny_testbed.size
    (found,) = train_trials(tiny_testbed, [(rows, 5)])
    documents = [tiny_testbed.documents[row] for row in np.sort(rows)]
    settings = continued_settings(tiny_testbed, common_targets(size.budget_tokens, 2 * size.batch_tokens))
    learner = train(begin(tiny_testbed.model), documents, settings, np.random.default_rng(5))
    assert found == measure_losses(learner.model, hold_out(tiny_testbed))
    assert train_trials(tiny_testbed, [(rows[::-1], 5)]) == [found]


def test_trials_of_less_than_the_budget_are_refused_or_all_as_short(tiny_testbed):
    every = np.arange(len(tiny_testbed.documents))
    with pytest.raises(UnequalTrainings):
        train_trials(tiny_testbed, [(every, 0), (every[:2], 0)])
    found = train_trials(tiny_testbed, [(every, 0), (every[:2], 0)], short=True)
    targets = int((tiny_testbed.n_tokens[:2] - 1).sum())
    settings, generator = continued_settings(tiny_testbed, targets), np.random.default_rng(0)
    alone = train(begin(tiny_testbed.model), tiny_testbed.documents, settings, generator)
    assert found[0] == measure_losses(alone.model, hold_out(tiny_testbed))
    assert found[1] != found[0]


def test_domains_are_held_out_whole_with_the_bytes_of_their_tokens(tiny_testbed):
    held_out, size = hold_out(tiny_testbed), tiny_testbed.size
    assert set(held_out.domains) == {"sums", "law"}
    for name, domain in held_out.domains.items():
        assert len(domain.documents) == size.documents_per_domain
        assert max(map(len, domain.documents)) <= size.window_tokens
        assert 0 < domain.n_bytes <= sum(len(text.encode()) for text in tiny_testbed.texts.others[name])
    alone = hold_out_reference(tiny_testbed, tiny_testbed.texts.measured)
    assert (alone.reference, alone.domains) == (held_out.reference, {})


def test_a_selection_of_one_arm_is_less_diverse_than_the_pool(tiny_testbed):
    whole = profile(tiny_testbed, np.arange(len(tiny_testbed.documents)))
    one_arm = profile(tiny_testbed, np.flatnonzero(tiny_testbed.arm == tiny_testbed.arm[0]))
    assert whole["coverage"] == 1.0
    assert one_arm["effective_arms"] == 1.0 < whole["effective_arms"]
