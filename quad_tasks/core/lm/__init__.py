"""Language models: loading and batching them, their hidden states, and a small training loop."""
