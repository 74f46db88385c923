"""Trouble that people reported with custom Keras parts, each kind of it, with the part written with kustom.

A report stands for its kind: beside the case that was reported there are others that nobody has reported yet. What must
hold is always the same: the part that comes back from the file is the part that went in, or an error of ours has said
before anything was lost that it could not be; never a silent other number.
"""
