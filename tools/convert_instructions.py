#!/usr/bin/env python3
"""Convert Alpaca or ShareGPT JSON to the one-line ｟newline｠ format of the Vicuna recipe, and back."""

from __future__ import annotations

import argparse
import sys

from onmt_llm.data.instructions import convert_file
from onmt_llm.errors import OnmtLlmError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-input", "--input", required=True, help="JSON list or JSONL; lines, for -to alpaca|sharegpt")
    parser.add_argument("-output", "--output", required=True, help="file to write")
    parser.add_argument(
        "-to", "--to", choices=("lines", "alpaca", "sharegpt"), default="lines", help="format of the output"
    )
    arguments = parser.parse_args()
    try:
        print(convert_file(arguments.input, arguments.output, to=arguments.to), file=sys.stderr)
    except OnmtLlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
