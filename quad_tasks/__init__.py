"""Quad: choose pretraining data by influence and diversity (arXiv 2409.16986)."""
