"""What the rules should have chosen: every way to make a problem, timed on the GPU.

gpunn chooses kernels, tiles, parts of K, blocks and teams by estimated times. Whether a product is
slow because its kernel is, or because another one should have been chosen, only a clock tells. The
stage "choices" of the run on hardware times all that a rule chooses among, for the products,
convolutions and recurrent layers of whole training steps, for a sweep of products and for
`mlp_train`, and keeps names, estimates and times, from which rules can be fitted without a GPU:

    python -m gpunn.bench.choices               the problems, the ways and their estimates
    python -m gpunn.bench.choices FILE...       what result files say of the present rules

=========  =========================================================================================
ways       a way to make a problem, its arrays, and how a rule is made to show all of them
products   products and convolutions as problems;  plans: `mlp_train` and recurrent layers
problems   all kinds of problems by name, and as they are in result files
listing    which problems: those inside training steps, and sweeps
stage      compiles what the ways need, and times them on a GPU
fitting    the factors between estimates and times;  tables: regrets and factors as text
=========  =========================================================================================
"""
