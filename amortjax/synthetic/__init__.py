"""Sparse codes with known truth: data, encoders and codes of arXiv 2411.13117, and what a correct solver reaches."""
