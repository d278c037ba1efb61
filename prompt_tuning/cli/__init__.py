"""The command line and gin: one thin module per command, everything below it is plain Python."""
