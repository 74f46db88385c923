"""Train: a step is a function of state, and the state is found, not passed."""
