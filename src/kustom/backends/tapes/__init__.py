"""A gradient tape's recording on each backend, with the same names; `kustom.gradients.tape` is the one tape in front of them."""
