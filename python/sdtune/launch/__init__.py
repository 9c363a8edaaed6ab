"""Launch: the run folder, the supervisor of a run, and the agents of its ranks."""
