"""The checker of shapes and types in signatures while tests run; an int will do for a float, as in Python itself."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
