"""Adversarial Diffusion Tuning for any training loop: torch, diffusers and transformers, no host and no command."""
