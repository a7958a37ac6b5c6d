"""The chat page and the translator page: Gradio apps in the browser.

`page` puts the components together, and `page.js` and `page.css` are its part in the browser. `actions` says what a
visitor can do, on a `conversation` that the browser stores; `answering` follows an answer while it arrives, from a
`model` with its scheduler; `view` and `escaping` make what is shown. `launch` serves a page.
For models that translate, `translator_page` is the page, and `translation_model` translates.
"""
