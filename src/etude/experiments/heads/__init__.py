"""Experiments on heads: claims that need made-up data or a network trained for the purpose."""
