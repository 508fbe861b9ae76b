"""The path from noise to image: samplers, the unroll, which steps carry gradient, and how strong it is."""
