"""Nouns of the method: tensors and arrays in, tensors and arrays out. No orchestration, no storage, no config."""
