"""The chat page: a Gradio app in the browser.

`app` draws the page and streams the answers of a `Responder` (a `ChatSession` of `generate`); `escaping` makes text
safe to show. The page holds no model, and a conversation lives in its visitor's own session.
"""
