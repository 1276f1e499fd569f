"""The three small models: VAE, text encoder and diffusion transformer."""
