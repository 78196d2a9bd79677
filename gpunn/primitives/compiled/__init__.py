"""Loops that `cpu_compiled` has compiled by Numba. Importing a file of this folder imports Numba.

Arrays are C-contiguous. What one file's functions call lies in the same file: Numba looks at that
file alone to see whether what it has kept on disk is still right.
"""
