"""The two beds of the evidence: how the networks that every measurement starts from were trained. Run once; resumable."""
