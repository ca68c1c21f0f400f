"""Training a sparse autoencoder: dense where it must be (the encoder's product), sparse everywhere else."""
