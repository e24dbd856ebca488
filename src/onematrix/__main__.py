"""python -m onematrix: the command line."""

from onematrix.cli import main

if __name__ == "__main__":
    main()
