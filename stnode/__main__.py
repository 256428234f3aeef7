"""`python -m stnode`."""

from stnode.daemon import main

if __name__ == "__main__":
    main()
