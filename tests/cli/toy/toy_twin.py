"""Another module with a function of the same name."""


def train(steps: int) -> int:
    return steps
