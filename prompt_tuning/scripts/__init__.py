"""What shell scripts written for the original call by `python3 -m prompt_tuning.scripts.NAME`."""
