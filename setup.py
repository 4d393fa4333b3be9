"""What is compiled: the fast convolutions of `sr_core.models.winograd`. All else is said in pyproject.toml.

Optional: without a compiler, or on another processor, the package installs all the same and convolves with PyTorch.
OpenMP is left to be found at run time, in PyTorch, so that there is one pool of threads and not two.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "sr_core.models._winograd",
            ["sr_core/models/winograd.cpp"],
            language="c++",
            # GCC warns of its own headers' intrinsics
            extra_compile_args=["-O3", "-std=c++17", "-fopenmp", "-Wall", "-Wno-maybe-uninitialized"],
            optional=True,
        )
    ]
)
