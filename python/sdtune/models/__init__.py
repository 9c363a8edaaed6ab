"""Base models: model families, weights, geometry, pipelines."""
