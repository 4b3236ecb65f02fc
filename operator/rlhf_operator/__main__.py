"""python -m rlhf_operator"""

import sys

from rlhf_operator.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
