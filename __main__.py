"""``python -m unsee`` is the command ``unsee``."""

from unsee.cli import main

if __name__ == "__main__":
    main()
