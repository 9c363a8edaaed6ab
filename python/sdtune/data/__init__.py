"""Training data: pictures, captions, samples, latents."""
