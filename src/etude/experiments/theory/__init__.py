"""Experiments of the theory family: claims about many training runs at once."""
