"""The command line, in words: each command's flags. Imports nothing heavy, so --help is quick."""
