"""The road of the tasks whose answer is text: completion, chat, preference."""
