"""Data sets: from files to batches.

``rows`` reads files, ``layouts`` knows what columns mean, ``load`` splits and counts what was left
out, ``encode`` makes tokens, ``batches`` says which rows are in which step. A row keeps its file
and line all the way, so that every complaint can name them.
"""
