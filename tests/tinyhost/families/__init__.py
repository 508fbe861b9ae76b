"""One module per model family of the host. To add one, write a module with these names:

`AFTER_IMPORT`
    Host module name -> function that shrinks it, called in the host's process right after that module has been executed.
`NETWORK_MODULE`
    The host's default network module of the family, such as `networks.lora`.
`write(folder)`
    Write a random checkpoint that the shrunken host loads, and return its path. Called in the test's process.
`write_tokenizers(folder)`
    Fill the folder that is handed over as `--tokenizer_cache_dir`.
`ARGUMENTS`
    Further host arguments that every script of the family needs.

The module is loaded by path in the host's process: at its top it imports the standard library only.
"""
