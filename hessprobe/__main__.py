"""``python -m hessprobe`` is the command ``hessprobe``."""

from hessprobe.cli.entry import main

if __name__ == "__main__":
    main()
