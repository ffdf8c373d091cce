"""Graphs: representations of nodes and objectives that learn from edges.

Methods take the adjacency as an (N, N) scipy sparse matrix and give one row a node.
"""

from etude.graphs.fast_rp import fast_rp, very_sparse_projection

__all__ = ["fast_rp", "very_sparse_projection"]
