"""Differentiate: one gradient tape, and one set of transforms, on every backend."""
