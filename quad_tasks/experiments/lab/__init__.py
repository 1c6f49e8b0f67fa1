"""Share data, models, rival methods and measures between experiments: the testbed and all that works in it."""
