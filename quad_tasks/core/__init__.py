"""Compute influence, bandit and selection on tensors and arrays; no orchestration, storage or configuration."""
