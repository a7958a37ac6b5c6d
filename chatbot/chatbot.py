"""Talk to a model in the browser: the command `onmt_llm_chat`, run from a checkout.

python chatbot/chatbot.py -inference_config_file translate_opts_ct2.yaml -inference_mode ct2 -server_port 5000
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # find onmt_llm in the checkout, installed or not
    from onmt_llm.cli.chat import main

    raise SystemExit(main())
