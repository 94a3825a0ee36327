"""`python -m agent` is `emupool`."""

from agent.cli import main

if __name__ == "__main__":
    main()
