"""A trial is training on its rows from the checkpoint, computed once; held-out bytes are those of the tokens."""

import numpy as np

from quad_tasks.experiments.lab.train_choice import begin, measure_losses, train
from quad_tasks.experiments.lab.trials import continued_settings, hold_out, hold_out_reference, profile, train_trials


def test_a_trial_is_one_pass_over_its_rows_in_order(tiny_testbed):
    rows = np.array([40, 3, 17])
    (found,) = train_trials(tiny_testbed, [(rows, 5)])
    documents = [tiny_testbed.documents[row] for row in (3, 17, 40)]
    settings = continued_settings(tiny_testbed, documents)
    learner = train(begin(tiny_testbed.model), documents, settings, np.random.default_rng(5))
    assert found == measure_losses(learner.model, hold_out(tiny_testbed))
    assert train_trials(tiny_testbed, [(rows[::-1], 5)]) == [found]


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
