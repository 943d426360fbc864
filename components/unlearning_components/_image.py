"""The one image of all components."""

import os

from unlearning import __version__

IMAGE = os.environ.get("UNLEARN_IMAGE") or f"kfp-unlearning-python:{__version__}"
"""Read when a pipeline is compiled. Its name holds "python", so that the local runner takes it for what it is."""
