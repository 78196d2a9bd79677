"""Floor 5: measuring primitives and whole training steps against the floor and against peers.

`measure` times the cases of `cases` with the clocks of `timing`; `results` is the file format,
`compare`, `roofline` and `report` read it. The command is ``gpunn bench``.
"""
