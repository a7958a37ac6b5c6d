"""`python -m onmt_llm`."""

from __future__ import annotations

from onmt_llm.cli.main import main

raise SystemExit(main())
