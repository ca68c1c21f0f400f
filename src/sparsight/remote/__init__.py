"""A scope that is elsewhere: the same names over HTTP, without torch."""
