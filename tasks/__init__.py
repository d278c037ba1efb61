"""Registrations of seqio tasks and the text functions they are made of.

Gin files, users and tests import these; `prompt_tuning` itself never does.
"""

if __name__ != "prompt_tuning.tasks":
    # From the repository's root `import tasks` would find this folder a second time, under another
    # name, and register every task twice.
    raise ImportError(f"Import `prompt_tuning.tasks`, not {__name__!r}.")
