"""What a run says before it begins and when it is over."""
