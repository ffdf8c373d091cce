"""Experiments on graphs: claims about node representations that no task expresses."""
