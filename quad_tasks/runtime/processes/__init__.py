"""Programs and processes beside a run that never outlive it."""
