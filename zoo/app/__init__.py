"""The page `zoo app`: several models side by side, in a browser, without any other server than this one.

models.py   the models of a page and their adapters, shared by all who look at it
draw.py     what visitors ask for, drawn: plain functions
edit.py     variations and interpolation, for models that keep meaning and noise apart
view.py     results as HTML
page.py     the layout, and which button calls what
"""
