"""`python -m mambar`: the command line, for torchrun and for places without the script on the path."""

from mambar.cli.main import main

if __name__ == "__main__":
    main()
