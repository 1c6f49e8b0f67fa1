"""Experiments that ship with the product, one file each.

Each writes `experiments/<name>/<digest>/` in the workspace: drawings, then `result.json`. The digest is the result's
content: equal results share a place, and no other result can overwrite them.

What experiments and benchmarks share is in `lab`: the testbed they measure in, rival selection methods (`baselines`),
and the one training loop (`train_choice`).
"""
