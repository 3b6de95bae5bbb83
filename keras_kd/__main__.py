"""`python -m keras_kd` runs the whole chain on the user's own files."""

import os
import sys

# What TensorFlow writes about itself at start-up would drown the lines of progress.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from keras_kd.cli import main

if __name__ == "__main__":
    sys.exit(main())
