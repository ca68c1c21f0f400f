"""What features mean, in words: who writes labels, and how well labels predict where a feature fires."""
