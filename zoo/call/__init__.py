"""What a call of a pipeline says, checked and made whole before anything is drawn."""
