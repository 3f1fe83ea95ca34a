"""The control plane of Massive Model Serving."""
