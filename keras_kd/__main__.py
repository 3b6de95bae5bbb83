"""`python -m keras_kd` runs the whole chain on the user's own files."""

from keras_kd.cli import run

if __name__ == "__main__":
    run()
