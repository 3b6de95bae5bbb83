"""`python -m tflite_tools`: see cli.py."""

import sys

from tflite_tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
