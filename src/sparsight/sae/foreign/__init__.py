"""Other people's SAE files, a file here for each format; docs/formats.md has them in one table."""
