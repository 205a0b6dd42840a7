"""What a compiled program does, read from its HLO text: `compiled.as_text()`."""
