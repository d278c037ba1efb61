"""`python3 -m prompt_tuning.scripts.find_module NAME`: the same as `prompt-tuning find-module`."""

import sys

from prompt_tuning.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["find-module", *sys.argv[1:]]))
