"""Training on stored activations: a torch dataset and a shuffling loader."""
