"""Trees of the models of `tinyhost.true_size`; like the families, these modules are loaded in the host's process, too."""
