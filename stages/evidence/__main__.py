"""python -m stages.evidence DIR: the files of the experiment in a folder; what is there stays."""
import sys
from pathlib import Path

from . import prepare

if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
