"""Everything on disk: the run's folder, sealed and atomic files, names, secrets cut out, where numbers come from."""
