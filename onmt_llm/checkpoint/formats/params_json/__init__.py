"""Models described by params.json: `read` those of Meta, Mistral and torchtune, `write` Meta's."""
