"""theory: what can be said about training and its results by calculation.

Measures of trained networks and laws of learning, each with the experiment that checks it.
"""

from etude.theory.rankme import RankMeSelector, effective_rank_curve, rankme

__all__ = ["RankMeSelector", "effective_rank_curve", "rankme"]
