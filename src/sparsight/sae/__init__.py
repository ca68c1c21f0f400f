"""The second machine: a sparse autoencoder, its sparse codes, its files."""
