"""The coherent distributed cache."""
