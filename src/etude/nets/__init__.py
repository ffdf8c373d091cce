"""The small encoders that tasks train or use; no method lives here."""
