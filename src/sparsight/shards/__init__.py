"""The first store: activations at rest. Written whole or not at all, read in a shuffled order without loading them."""
