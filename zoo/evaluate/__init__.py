"""Whether pictures show what their prompts say: a checker that only looks, its calibration, and the tasks it scores."""
