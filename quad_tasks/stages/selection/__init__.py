"""What follows the rounds: documents selected, trained on beside a random control, published."""
