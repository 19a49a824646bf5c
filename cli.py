"""``python cli.py`` from a checkout is the installed command ``hessprobe``."""

from hessprobe.cli.app import main

if __name__ == "__main__":
    main()
