"""Experiments on retrieval: claims about finding documents that no task expresses."""
