"""A vocabulary of 160 pieces, trained in milliseconds on a few sentences."""

from prompt_tuning.vocabulary import train_sentencepiece

SIZE = 160
SENTENCES = """
The harbour was quiet before the boats came home with the morning's fish.
A good knife, a warm coat and a dry match are worth more than advice.
She read the letter twice, folded it, and put it back under the clock.
Nobody remembers who planted the pear tree behind the old school.
The film is slow and lovely, and its ending is a small miracle.
What a dull, noisy and pointless story; I wanted my evening back.
Rain fell on the roof all night, and the children slept through it.
He counted seven bridges between the mill and the market square.
Their music was terrible, but everyone in the room was smiling.
The teacher asked why the moon follows us when we walk at night.
An honest and moving performance by a very young actor.
It is hard to say which was worse, the jokes or the silence after them.
We baked bread on Sunday and gave half of it to the neighbours.
The train stopped twice in the snow and once for a family of ducks.
Old maps show a road here, but only the stones of it are left.
Every answer she gave was right, and every one of them was unkind.
The clever plot turns quickly and never loses its sense of humour.
A boring, careless copy of a much better film from the same director.
When the lights came back, the cake was gone and the dog looked happy.
They painted the door green, then blue, and finally left it bare.
""".strip().splitlines()


def train(path):
    """Writes the vocabulary to a path and returns it."""
    return train_sentencepiece(SENTENCES, path, size=SIZE)
