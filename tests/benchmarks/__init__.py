import components  # noqa: F401  # first: threads of numpy's BLAS are set as in the programs
