"""Experiments on losses: claims that need label noise or many labels a sample."""
