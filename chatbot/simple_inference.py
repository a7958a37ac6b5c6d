"""Answer a file of prompts and write the answers as JSON: `onmt_llm.cli.simple_inference`, run from a checkout.

    python chatbot/simple_inference.py -input_file input_examples.txt -inference_config_file translate_opts_py.yaml \
        -inference_mode py -output_dir outputs
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # find onmt_llm in the checkout, installed or not
    from onmt_llm.cli.simple_inference import main

    raise SystemExit(main())
