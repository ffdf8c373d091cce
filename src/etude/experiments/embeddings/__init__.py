"""Experiments on embeddings: claims about cutting, searching and comparing representations."""
