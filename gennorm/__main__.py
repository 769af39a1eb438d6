"""``python -m gennorm`` runs the command line."""

from gennorm.cli import main

if __name__ == "__main__":
    main()
