"""Variables inside the branches of `ops.cond` and its kin, while a step is lifted: a file for each backend that lifts."""
