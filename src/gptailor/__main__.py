"""`python -m gptailor`."""

from gptailor.cli import main

if __name__ == "__main__":
    main()
