"""What a run may be told: the models of a configuration, and how a file of it is read."""
