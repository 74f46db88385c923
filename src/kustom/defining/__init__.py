"""Define: a function or a small class becomes a complete Keras part."""
