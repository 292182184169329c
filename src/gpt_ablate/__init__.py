"""Architecture ablations of GPT models, configured with Hydra."""

__version__ = "0.1.0"
