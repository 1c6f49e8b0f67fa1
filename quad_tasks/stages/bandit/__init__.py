"""What `flows/run_bandit.py` orders: rounds planned, scored and committed to the ledger."""
