"""`python -m depthsys.cli`."""

from depthsys.cli.app import main

if __name__ == "__main__":
    main()
