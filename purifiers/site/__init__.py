"""A static site made from the committed tables: ``python -m purifiers site``.

``results`` reads the files, ``cells`` formats single numbers, ``pages`` writes Markdown, and
``build`` has Sphinx turn it into HTML. Nothing is run and no number is recomputed.
"""
