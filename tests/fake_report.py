"""A made-up `report.json` whose numbers agree with each other, for tests of what is made of a report."""

import math

import numpy as np


def fake_report(n_arms: int = 30, n_documents: int = 600) -> dict:
    """A run whose numbers agree with each other: 5,000 documents in, one stage, three seeds."""
    generator = np.random.default_rng(0)
    arm_N = generator.integers(n_arms, size=n_documents)
    centre_K2 = generator.normal(size=(n_arms, 2)) * 4
    x, y = (centre_K2[arm_N] + generator.normal(size=(n_documents, 2))).T
    influence_N = 0.02 * centre_K2[arm_N, 0] + generator.normal(size=n_documents) * 0.02
    scored_N = generator.random(n_documents) < 0.4
    selected_N = scored_N & (influence_N > 0.05)
    edges = np.linspace(-0.25, 0.25, 41)
    before = {
        "reference_docs": 2.10,
        "code": 1.80,
        "docstrings": 2.00,
        "headers": 1.70,
        "descriptions": 2.20,
        "licences": 1.60,
    }
    random = {name: value - 0.02 for name, value in before.items()}
    selected = {name: value + 0.03 for name, value in before.items()} | {"reference_docs": 1.95, "docstrings": 1.97}
    return {
        "run": "demo-1",
        "created": "2026-01-02T03:04:05Z",
        "quad_version": "0.1.0",
        "config_digest": "ab" * 32,
        "config": {
            "seed": 0,
            "heldout": {"reference_domain": "reference_docs"},
            "bandit": {"alpha": 1.0, "arms": [1, 2]},
        },
        "pool": {
            "name": "demo",
            "version": "v0001",
            "documents": 4900,
            "tokens": 1_000_000,
            "bytes": 4_000_000,
            "inputs": ["pool/*.jsonl"],
            "set_aside": {"duplicate_text": 90, "invalid_json": 10},
            "arms": n_arms,
            "sources": {
                "stdlib_code": {"documents": 3000, "tokens": 700_000},
                "pydoc_topics": {"documents": 900, "tokens": 100_000},
                "hex_noise": {"documents": 1000, "tokens": 200_000},
            },
        },
        "scored": {"documents": 1400, "tokens": 160_000, "share": 0.16},
        "rejected": {"below_threshold": 990, "too_short": 10},
        "unpulled": 3500,
        "selected": {
            "documents": 400,
            "tokens": 50_000,
            "budget_tokens": 50_000,
            "by_arm": {"0": 50_000},
            "by_source": {
                "stdlib_code": {"documents": 100, "tokens": 10_000},
                "pydoc_topics": {"documents": 300, "tokens": 40_000},
            },
        },
        "tokenizer": {"name": "byte-bpe", "sha256": "cd" * 32},
        "model": {"source": "fresh", "parameters": 1_100_000, "architecture": "LlamaForCausalLM"},
        "reference": {"key": "references/r", "domain": "reference_docs", "sets": []},
        "threshold": 0.05,
        "stages": [
            {
                "stage": 0,
                "seeds": [0, 1, 2],
                "before": {"reference_loss": 5.885, "domains": before},
                "random": {"reference_loss": 5.865, "domains": random, "reference_loss_by_seed": [5.86, 5.87, 5.865]},
                "selected": {"reference_loss": 5.71, "domains": selected, "reference_loss_by_seed": [5.70, 5.72, 5.71]},
                "rounds": [
                    {
                        "round": position,
                        "kind": "pilot" if position < 2 else "bandit",
                        "arms": 5,
                        "documents": 100,
                        "tokens": 12_000,
                        "mean_reward": 0.02 * math.log1p(position),
                        "effective_arms": 20 - position,
                        "accepted_tokens": 3_700,
                    }
                    for position in range(14)
                ],
            }
        ],
        "arms": [
            {
                "arm": arm,
                "documents": 160,
                "tokens": 30_000 + 100 * arm,
                "pulls": 1 + arm % 7,
                "mean_reward": 0.02 * centre_K2[arm, 0],
                "ucb_score": 0.03 * centre_K2[arm, 0],
                "scored": 40,
                "selected_tokens": max(0, int(4000 * centre_K2[arm, 0])),
                "quantiles": [centre_K2[arm, 0] * 0.02 + shift for shift in (-0.04, -0.02, 0.0, 0.02, 0.04)],
                "texts": None
                if arm > 5
                else {
                    kind: {
                        "id": f"{kind}-{arm}",
                        "source": "s",
                        "influence": 0.1,
                        "n_tokens": 9,
                        "text": "a\n  text",
                        "characters_left_out": 3,
                    }
                    for kind in ("best", "borderline", "worst")
                },
                "terms": ["object", "method", "returns", "attribute", f"term{arm}"],
                "sources": {"stdlib_code": 100, "pydoc_topics": 50, "hex_noise": 10},
            }
            for arm in range(n_arms)
        ],
        "pulls": {
            "arms": [3, 1, 2],
            "arms_pulled": n_arms,
            "first_round": [0, 2, 4, 6, 8, 10, 12],
            "documents": [[0, 8, 8, 4, 0, 0, 0], [0, 4, 0, 4, 0, 4, 0], [0, 0, 0, 0, 4, 0, 4]],
            "ucb_score": [None, None, *({"low": 0.1, "median": 0.2 + r / 50, "high": 0.6} for r in range(12))],
        },
        "influence": {
            "bin_edges": edges.tolist(),
            "scored": np.histogram(influence_N[scored_N], edges)[0].tolist(),
            "selected": np.histogram(influence_N[selected_N], edges)[0].tolist(),
        },
        "examples": {
            kind: [
                {
                    "id": f"{kind}/{number}",
                    "source": "pydoc_topics",
                    "arm": number,
                    "influence": 0.1 / (1 + number),
                    "n_tokens": 120,
                    "text": "The following table\n    keeps its  spaces\n" * 20,
                }
                for number in range(3)
            ]
            for kind in ("best", "borderline", "worst")
        },
        "map": {
            "x": x.tolist(),
            "y": y.tolist(),
            "arm": arm_N.tolist(),
            "influence": [value if seen else None for value, seen in zip(influence_N.tolist(), scored_N, strict=True)],
            "selected": selected_N.tolist(),
        },
        "diversity": {
            "selected": {"cluster_entropy": 2.4, "vendi_score": 31.0},
            "random": {"cluster_entropy": 3.2, "vendi_score": 62.0},
        },
        "prediction": {"spearman": 0.63, "baseline_spearman": 0.41, "accepted": True},
        "findings": [
            {
                "signature": "too_much_compute",
                "severity": "info",
                "evidence": {"scored_per_selected": 3.2},
                "remedy": "Lower m.",
            },
            {
                "signature": "too_little_diversity",
                "severity": "severe",
                "evidence": {"vendi_ratio": 0.5, "worst_domain": "code"},
                "remedy": "Raise the share of random documents.",
            },
        ],
        "provenance": {
            "selection": {"uuid": "u-1"},
            "pool": {"digest": "d-1"},
            "packages": {"torch": "2.13.0"},
            "stages": [{"factors": "f"}],
        },
        "time_s": {"ingest": 2.0, "embed": 14.0, "fit": 60.0, "score": 192.0, "train": 95.5},
        "peak_memory_bytes": 1_610_612_736,
    }
