"""How the tests take epochs from a source."""

from __future__ import annotations

import itertools

import keras
import numpy as np


def batches(source, epoch=0, at=0, most=(3, 1, 7)):
    """The batches of an epoch as a step gets them, after checks of what holds for every block."""
    source.begin(epoch, at)
    got = []
    for want in itertools.cycle(most):
        block = source.take(want)
        if block is None:
            assert source.take(want) is None
            return got
        assert 1 <= block.batches <= want
        assert block.start == at + len(got)
        assert (block.rows is None) != (block.arrays is None)
        for i in range(block.offset, block.offset + block.batches):
            if block.rows is None:
                leaves = [array[i].copy() for array in block.arrays]
            else:
                assert block.rows.dtype == np.int32
                leaves = [array[block.rows[i]] for array in source.resident]
            sizes = {len(leaf) for leaf in leaves if leaf.ndim}
            assert sizes <= {block.size}
            got.append(source.unflatten(leaves))


def first(got):
    """All of x of some batches, one after another."""
    return np.concatenate([args[0] for args in got]).tolist() if got else []


class Rows(keras.utils.PyDataset):
    """The numbers from 0, in batches."""

    def __init__(self, samples, size, **kwargs):
        super().__init__(**kwargs)
        self.samples, self.size = samples, size
        self.calls = []

    def __len__(self):
        return -(-self.samples // self.size)

    def __getitem__(self, number):
        x = np.arange(number * self.size, min((number + 1) * self.size, self.samples))
        return x, x + 0.5

    def on_epoch_begin(self):
        self.calls.append("begin")

    def on_epoch_end(self):
        self.calls.append("end")


def in_list(samples, size):
    dataset = Rows(samples, size)
    return [dataset[i] for i in range(len(dataset))]


def in_tf_data(samples, size):
    import tensorflow as tf

    x = np.arange(samples)
    return tf.data.Dataset.from_tensor_slices((x, x + 0.5)).batch(size)


def in_loader(samples, size):
    import torch

    x = torch.arange(samples)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x + 0.5), batch_size=size)


class Again:
    """Something of one's own that can be iterated anew, and does not know its length."""

    def __init__(self, samples, size):
        self.samples, self.size = samples, size

    def __iter__(self):
        return iter(in_list(self.samples, self.size))


def in_generator(samples, size):
    yield from in_list(samples, size)


def in_zip(samples, size):
    # zip knows no weak references.
    x, y = zip(*in_list(samples, size), strict=True)
    return zip(x, y, strict=True)


AGAIN = {"list": in_list, "tf.data": in_tf_data, "DataLoader": in_loader, "PyDataset": Rows, "iterable": Again}
ONCE = {"generator": in_generator, "iterator": lambda *shape: iter(in_list(*shape)), "zip": in_zip}
