"""The conformance checker: whether a custom Keras part keeps what Keras and its users rely on.

A check is silent or right: it finds a fault, with what was measured, or passes, or says why it could not decide.
"""
