"""``python cli.py`` from a checkout is the installed command ``hessprobe``."""

from hessprobe.cli.entry import main

if __name__ == "__main__":
    main()
