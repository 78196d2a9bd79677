"""Floor 2: the kernel table. One file a family: specification, reference, launch; arrays in,
arrays out, no autograd. `gpunn.kernels` is its public face."""
