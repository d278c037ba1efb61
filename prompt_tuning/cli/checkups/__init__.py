"""What `prompt-tuning doctor` looks at, one group of questions in each file."""
