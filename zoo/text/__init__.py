"""Text encoders: prompts to the features that generators attend to."""
