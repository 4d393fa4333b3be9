"""The stages: an interface for Kubeflow and a program each."""

import sr_core  # noqa: F401  # what it sets for warnings of libraries holds before they are loaded
