"""The stages: an interface for Kubeflow and a program each."""

import os

# Before numpy is loaded: its BLAS starts threads that wait busily for the next product, and so take the cores from the
# network's, which then needs three times as long. What numpy multiplies here is small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import sr_core  # noqa: F401  # what it sets for warnings of libraries holds before they are loaded
