"""The experiments the product ships, one file each (method: "Experiments the product ships as flows").

Each writes `experiments/<name>/<digest>/` in the workspace: drawings, then `result.json`, whose digest names the place,
so that equal results meet and unequal ones never do.
"""
