"""What models are trained on: a world of drawn scenes, its captions, and readers of the user's own pictures."""
