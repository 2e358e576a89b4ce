"""The parts of `gpu_check.py`: each measures one thing on the device and reports it row by row."""
