"""What a run did, in pictures and in words: figures, one HTML page, a Markdown summary. Needs no torch."""
