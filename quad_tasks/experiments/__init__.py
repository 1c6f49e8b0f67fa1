"""The experiments the product ships, one file each (method: "Experiments the product ships as flows").

Each writes `experiments/<name>/<digest>/` in the workspace: drawings, then `result.json`, whose digest names the place,
so that equal results meet and unequal ones never do.

What experiments and benchmarks share: `baselines.py`, other ways to choose; `outcome.py`, what a choice is worth.
"""
