"""Reads, checks, translates and explains gin configurations; `cli.config` puts it together."""
