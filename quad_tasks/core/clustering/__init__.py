"""Embed texts, cluster the embeddings into arms, and find the keywords of arms."""
