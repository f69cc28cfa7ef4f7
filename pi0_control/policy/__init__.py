"""Physical units to model space and back: images, prompts, states and actions of one robot."""
