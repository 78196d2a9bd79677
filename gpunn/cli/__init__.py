"""Floor 6: the command `gpunn`. Only argument parsing and printing; the work is in the library."""
