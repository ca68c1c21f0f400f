"""Model x text -> Shards: the activations of the tokens that are wanted, on the disk or straight to a training."""
