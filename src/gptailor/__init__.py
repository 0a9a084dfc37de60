"""Gptailor: a GPT fine-tuned to your own text, with numbers you can trust."""

__version__ = "0.1.0"
