"""Compose or load a model, set what trains, train, evaluate, export."""
