"""The only package that knows sd-scripts. Importing it costs nothing: the start-up hook does so in every Python process."""
