"""The settings of a node, read from the environment in one place and checked at start."""
