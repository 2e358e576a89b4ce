"""One sweep on many devices: cells of SAEs that share one stream, planned, run and watched."""
