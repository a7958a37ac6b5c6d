"""Talk to a model in the browser.

    python chatbot/chatbot.py -inference_config_file translate_opts_ct2.yaml -inference_mode ct2 -server_port 5000

The same as the command `onmt_llm_chat`; runs from a clone too.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # a script's own folder comes first on the path, where `chatbot` would mean this file instead of its package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from onmt_llm.cli.chat import main

    raise SystemExit(main())
