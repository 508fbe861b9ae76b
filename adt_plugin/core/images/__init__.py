"""From latents to the images that the discriminator sees: decoders, crops, and where their weights lie."""
