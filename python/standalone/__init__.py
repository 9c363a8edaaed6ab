"""Programs for a host's own Python, without our environment: Python 3.9, standard library only, one file each."""
