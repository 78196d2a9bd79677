"""The differentiable functions, one file a family: forward and backward side by side."""
