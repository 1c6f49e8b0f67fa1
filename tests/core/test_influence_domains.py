import copy
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from quad_tasks.core import precision
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.calibration import calibrate
from quad_tasks.core.ekfac import apply_inverse, fit_factors
from quad_tasks.core.influence import reference_gradient, score_documents
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.model import load_model
from quad_tasks.core.lm.tokenizer import encode, load_tokenizer

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
WINDOW = 64
DOMAINS = ("code", "legal", "biomedical")

pytestmark = pytest.mark.skipif(
    not (SHARED / "models" / "stories260K").is_dir(),
    reason="the pretrained model and texts are not beside the repository",
)


def _tell_stories(model, n_stories):
    """At a low temperature: at temperature 1 the expected gradient of a model's own samples is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = torch.full((n_stories, 1), model.config.bos_token_id)
        mask = torch.ones_like(start)
        return model.generate(
            start, attention_mask=mask, do_sample=True, temperature=0.6, max_new_tokens=WINDOW - 1
        ).tolist()


def _windows(tokenizer, part, domain, n_texts):
    with gzip.open(SHARED / "data" / part / f"{domain}.jsonl.gz") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(n_texts), strict=False)]
    return [ids[:WINDOW] for ids in encode(tokenizer, texts)]


@pytest.fixture(scope="module")
def pretrained():
    """The model, batches of its stories and of other text for the fit, and the gradient of stories as the reference."""
    source = SHARED / "models" / "stories260K"
    model, tokenizer = load_model(source), load_tokenizer(source)
    stories = _tell_stories(model, 48)
    new, reference, sample = stories[:12], stories[12:40], stories[40:]
    sample = [*sample, *(ids for domain in DOMAINS for ids in _windows(tokenizer, "candidate", domain, 4))]
    fitted_on, _ = make_batches(sample, WINDOW, 512, seeds=range(len(sample)))
    gradient = reference_gradient(model, make_batches(reference, WINDOW, 512)[0], find_blocks(model))
    return model, tokenizer, new, fitted_on, gradient


@pytest.fixture(scope="module")
def direction(pretrained):
    model, _, _, fitted_on, gradient = pretrained
    return apply_inverse(fit_factors(model, fitted_on), gradient)


@pytest.fixture(scope="module")
def pool(pretrained):
    """A hundred documents of many kinds, to be ranked: batches of windows, and the document of each window."""
    _, tokenizer, new, _, _ = pretrained
    other = [ids for domain in DOMAINS for ids in _windows(tokenizer, "heldout", domain, 30)]
    return make_batches([*new, *other], WINDOW, 1024)


def test_unseen_stories_have_more_influence_than_other_text_when_stories_are_the_reference(pretrained, direction):
    model, tokenizer, new, _, _ = pretrained
    other = [ids for domain in DOMAINS for ids in _windows(tokenizer, "heldout", domain, 5)]
    batches, owners = make_batches([*new, *other], WINDOW, 512)
    scores = score_documents(model, batches, direction)
    per_token = np.empty(len(owners))
    per_token[owners.numpy()] = scores.influence / scores.n_tokens
    share_above = (per_token[:12, None] > per_token[None, 12:]).mean()  # the area under the ROC curve
    assert share_above > 0.9


@pytest.mark.parametrize("scorer", ["low_rank", "forward_only"])
def test_an_approximate_scorer_ranks_a_pretrained_models_pool_as_exact_scoring_does(
    pretrained, direction, pool, scorer
):
    calibration = calibrate(pretrained[0], *pool, {"": direction}, scorer, floor=0.999)
    assert calibration.accepted, calibration


def test_a_bfloat16_model_is_scored_by_losses_more_exactly_than_by_its_own_gradients(
    pretrained, direction, pool, monkeypatch
):
    """The truth is exact scoring in float32 with the rounded weights."""
    half = copy.deepcopy(pretrained[0]).bfloat16()
    truth = score_documents(copy.deepcopy(half).float(), pool[0], direction)
    by_losses = score_documents(half, pool[0], direction, "forward_only")
    exact = score_documents(half, pool[0], direction)
    of_truth = [
        spearmanr(one.influence / one.n_tokens, truth.influence / truth.n_tokens).statistic
        for one in (by_losses, exact)
    ]
    assert of_truth[0] > 0.9999 > of_truth[1]
    monkeypatch.setattr(precision, "has_bfloat16_products", lambda _: False)  # where it is no slower either
    found = calibrate(half, *pool, {"": direction}, "auto", floor=0.999)
    assert (found.scorer, found.accepted) == ("forward_only", True)


def test_a_rounded_fit_ranks_a_pretrained_models_pool_as_a_float32_one_does(pretrained, pool):
    """On the data's own labels: where labels are sampled, rounding draws some of them anew."""
    model, _, _, fitted_on, gradient = pretrained
    fits = [fit_factors(model, fitted_on, fisher="empirical", rounded=rounded) for rounded in (False, True)]
    exact, other = (score_documents(model, pool[0], apply_inverse(fit, gradient)).influence for fit in fits)
    assert spearmanr(exact, other).statistic > 0.99


def test_a_bfloat16_model_ranks_a_pool_as_its_float32_self_does(pretrained, direction, pool):
    model = pretrained[0]
    half = copy.deepcopy(model).bfloat16()
    exact, other = (score_documents(one, pool[0], direction).influence for one in (model, half))
    assert spearmanr(exact, other).statistic > 0.999
