"""robustness: methods that notice or withstand inputs unlike those of training.

Out-of-distribution detection, anomaly detection, adversarial and certified robustness.
"""

from etude.robustness.mahalanobis_ood import MahalanobisDetector

__all__ = ["MahalanobisDetector"]
