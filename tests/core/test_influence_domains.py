import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.ekfac import apply_inverse, fit_factors
from quad_tasks.core.influence import reference_gradient, score_documents
from quad_tasks.core.model import encode, load_model, load_tokenizer, make_batches

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


def test_unseen_stories_have_more_influence_than_other_text_when_stories_are_the_reference():
    source = SHARED / "models" / "stories260K"
    model, tokenizer = load_model(source), load_tokenizer(source)
    stories = _tell_stories(model, 48)
    new, reference, sample = stories[:12], stories[12:40], stories[40:]
    sample = [*sample, *(ids for domain in DOMAINS for ids in _windows(tokenizer, "candidate", domain, 4))]
    other = [ids for domain in DOMAINS for ids in _windows(tokenizer, "heldout", domain, 5)]
    factors = fit_factors(model, make_batches(sample, WINDOW, 512, seeds=range(len(sample)))[0])
    gradient = reference_gradient(model, make_batches(reference, WINDOW, 512)[0], find_blocks(model))
    batches, owners = make_batches([*new, *other], WINDOW, 512)
    scores = score_documents(model, batches, apply_inverse(factors, gradient))
    per_token = np.empty(len(owners))
    per_token[owners.numpy()] = scores.influence / scores.n_tokens
    share_above = (per_token[:12, None] > per_token[None, 12:]).mean()  # the area under the ROC curve
    assert share_above > 0.9
