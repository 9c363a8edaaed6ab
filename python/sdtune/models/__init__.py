"""Model families: how a base model is loaded and run."""
