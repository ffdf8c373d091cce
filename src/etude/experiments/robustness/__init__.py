"""Experiments of the robustness family: claims that need attacks or abnormal images."""
