"""Parts that several tests share: backends, samples, made data, and runs of small models."""
