"""The part of HDF5 that Keras writes, read strictly and in Python alone.

The HDF5 library follows whatever a file says: links into other files, data outside of it, B-trees that lead back to
themselves, sizes that nobody has checked; of mutated files some hang it and some crash it. So it never sees a file that
was not written by this process. What is read here is what h5py writes for Keras by default, and no more: superblock 0,
groups of symbol tables, object headers of version 1, contiguous arrays of numbers, arrays in chunks with gzip, text
attributes. Each structure is claimed once, so that nothing overlaps, nothing is shared and nothing leads in a circle.
Layouts and names are those of the HDF5 File Format Specification, version 3.0.
"""

from __future__ import annotations

from kustom.saving.hdf5.tree import Dataset, Group
from kustom.saving.hdf5.walking import read

__all__ = ["Dataset", "Group", "read"]
