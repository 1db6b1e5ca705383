"""What ties gradsurgery to other libraries and to whole use cases; each part needs its own extra."""
