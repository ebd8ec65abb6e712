"""What clients speak: each protocol turns its messages into the engine's requests and back."""
