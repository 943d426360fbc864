"""Machine unlearning: methods, metrics, attacks, and what a pipeline needs around them.

Importing this package imports neither torch, kfp nor mlflow; the rooms inside do, where they need them.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kfp-unlearning")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0+unknown"
