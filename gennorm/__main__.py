"""``python -m gennorm`` is ``gennorm``."""

from gennorm.cli import main

if __name__ == "__main__":
    main()
