"""Files that hold arrays under names, whatever they mean: read lazily, bounded and distrusted."""
