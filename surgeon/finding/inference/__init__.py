"""Measure how the tensors inside a model transform, from runs on transformed inputs; no annotation is needed."""
