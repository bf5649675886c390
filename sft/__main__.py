import sys

from sft.cli import main

sys.stdout.reconfigure(errors="backslashreplace")  # a terminal or file may lack characters that the data has
sys.exit(main())
