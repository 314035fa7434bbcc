"""`python -m poster_zoo` is `poster-zoo`."""

from poster_zoo.cli import main

if __name__ == "__main__":
    main()
