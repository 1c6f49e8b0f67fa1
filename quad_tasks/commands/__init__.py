"""What the commands of `quad` do, one file each, besides the flows."""
