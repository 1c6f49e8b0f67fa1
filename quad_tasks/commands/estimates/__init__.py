"""What a run asks of a machine: units of work, measured; stages, counted; memory; GPUs that are not here."""
